import { execFile } from "node:child_process";
import { createReadStream, existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import type { Sandbox } from "@mitos/sdk";

const run = promisify(execFile);
const cache = path.join(import.meta.dirname, "../../.cache/python-packages");
/** The host's interpreter, which gVisor's host template shows to its sandboxes too. */
export const sandboxPython = "/usr/bin/python3";

const printVersion = "import sys; print('%d.%d' % sys.version_info[:2])";

/** Named sets, so that a suite brings no more into a sandbox than it is about. */
const sets = {
  numpy: ["numpy>=1.26,<3"],
  plots: ["numpy>=1.26,<3", "matplotlib>=3.8,<4"],
  ipython: ["ipython>=8.12,<9"],
} as const;

/**
 * A gzipped tar of PyPI packages for an interpreter of this version, the host's unless said otherwise. Fetched once and kept in the checkout's cache folder.
 *
 * Debian's own interpreter often has no pip; whichever pip there is on PATH fetches wheels for the version that counts.
 */
export async function pythonPackages(set: keyof typeof sets, version?: string): Promise<string> {
  version ??= await hostPythonVersion();
  const tar = path.join(cache, `${set}-${version}.tar.gz`);
  if (existsSync(tar)) return tar;
  mkdirSync(cache, { recursive: true });
  // A name of this process's own: two suites may fetch the same set at once.
  const folder = `${tar}.${process.pid}`;
  await install(folder, version, sets[set]);
  // Whole or not at all: a run that is broken off leaves nothing that a later one would take for complete.
  await run("tar", ["-czf", `${folder}.tar`, "--exclude=tests", "--exclude=__pycache__", "-C", folder, "."]);
  renameSync(`${folder}.tar`, tar);
  rmSync(folder, { recursive: true, force: true });
  return tar;
}

/** The same sets unpacked on the host, for tests of the kernels without a sandbox. @returns a folder for PYTHONPATH */
export async function unpackedPackages(...wanted: (keyof typeof sets)[]): Promise<string> {
  const tars = [];
  for (const set of wanted) tars.push(await pythonPackages(set));
  const folder = path.join(cache, `unpacked-${tars.map((tar) => path.basename(tar, ".tar.gz")).join("+")}`);
  if (existsSync(folder)) return folder;
  const partial = `${folder}.${process.pid}`;
  mkdirSync(partial);
  for (const tar of tars) await run("tar", ["-xzf", tar, "-C", partial]);
  becomeFolder(partial, folder);
  return folder;
}

/** Brings a set into a sandbox as one upload and unpacks it there. @returns the folder for PYTHONPATH or sys.path */
export async function installPackages(sandbox: Sandbox, set: keyof typeof sets): Promise<string> {
  const tar = await pythonPackages(set, await pythonVersionIn(sandbox));
  const folder = `/workspace/packages/${set}`;
  await sandbox.files.write(`${folder}.tar.gz`, createReadStream(tar));
  const unpack = `mkdir ${folder} && tar -xzf ${folder}.tar.gz -C ${folder} && rm ${folder}.tar.gz`;
  const { exitCode, stderr } = await sandbox.exec(unpack, { timeoutSeconds: 120 });
  if (exitCode !== 0) throw new Error(`unpacking ${set} ended with ${exitCode}: ${stderr}`);
  return folder;
}

async function pythonVersionIn(sandbox: Sandbox): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(["python3", "-c", printVersion]);
  if (exitCode !== 0) throw new Error(`python3 in ${sandbox.id} ended with ${exitCode}: ${stderr}`);
  return stdout.trim();
}

/** Sets for programs on the host, by the interpreter of the sandboxes. What they were tested with is what is pinned. */
const hostSets = {
  "mitos-run-0.1.0": ["mitos-run==0.1.0", "websockets>=12,<18"],
  "mitos-run-0.1.1": ["mitos-run==0.1.1", "websockets>=12,<18"],
  // Later releases of claude-agent-sdk carry a program of 400 MB that nothing here starts.
  frameworks: ["deepagents>=0.6,<1", "openai-agents>=0.1,<0.6", "claude-agent-sdk==0.1.6", "mcp>=1.10,<2"],
  zenml: ["zenml>=0.90,<0.99"],
} as const;

export type HostSet = keyof typeof hostSets;

/** PyPI packages for a program on the host, fetched once and kept in the checkout's cache folder. @returns a folder for PYTHONPATH */
export async function hostPackages(set: HostSet): Promise<string> {
  const version = await hostPythonVersion();
  const folder = path.join(cache, `${set}-${version}-host`);
  if (existsSync(folder)) return folder;
  mkdirSync(cache, { recursive: true });
  const partial = `${folder}.${process.pid}`;
  await install(partial, version, hostSets[set]);
  becomeFolder(partial, folder);
  return folder;
}

/** Whole or not at all; when another process was faster, its folder is as good. */
function becomeFolder(partial: string, folder: string): void {
  try {
    renameSync(partial, folder);
  } catch (error) {
    if (!existsSync(folder)) throw error;
    rmSync(partial, { recursive: true, force: true });
  }
}

async function hostPythonVersion(): Promise<string> {
  const { stdout } = await run(sandboxPython, ["-c", printVersion]);
  return stdout.trim();
}

function install(folder: string, version: string, requirements: readonly string[]): Promise<void> {
  const options = ["--python-version", version, "--only-binary=:all:", "--target", folder, "--no-compile", "--quiet"];
  return pip(["install", "--disable-pip-version-check", ...options, ...requirements]);
}

/** With the first interpreter on PATH, or the sandboxes' own, that has pip. */
async function pip(args: readonly string[]): Promise<void> {
  for (const python of ["python3", sandboxPython]) {
    const hasPip = await run(python, ["-m", "pip", "--version"]).then(
      () => true,
      () => false,
    );
    if (!hasPip) continue;
    try {
      await run(python, ["-m", "pip", ...args], { maxBuffer: 16 * 1024 * 1024 });
      return;
    } catch (error) {
      const { stderr } = error as { stderr?: string };
      throw new Error(`these tests need packages from PyPI once, and pip could not fetch them: ${stderr ?? error}`);
    }
  }
  throw new Error(`these tests fetch packages from PyPI once, and no python3 here has pip: apt install python3-pip`);
}
