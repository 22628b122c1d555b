import { execFile } from "node:child_process";
import { realpath, stat } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { firstExecutable, firstLine, MissingPart, onPath, repositoryRoot } from "../host/parts.ts";

const run = promisify(execFile);

export const oldestRunsc = 20_240_401;

const installRunsc =
  "Run `npm run setup`, or install runsc (Debian 12: the package of bookworm-backports; Debian 13: `apt install runsc`; others: gvisor.dev), or set MITOS_RUNSC to its path.";
export interface Runsc {
  readonly path: string;
  /** What `runsc --version` says, for example `runsc 0.0~20240729.0`. */
  readonly build: string;
  /** Flags that not every build has, and that go before each command. */
  readonly ownFlags: readonly string[];
  /** Changes when the file does; for caches. */
  readonly fileId: string;
}

/** @throws MissingPart when there is none, or when it is too old for what this driver asks of it. */
export async function findRunsc(explicit: string | undefined): Promise<Runsc> {
  const asked = explicit ?? process.env.MITOS_RUNSC;
  const setUp = ["runsc-built/runsc", "runsc/usr/bin/runsc"].map((file) => path.join(repositoryRoot, ".cache", file));
  const candidates = asked ? [asked] : [...onPath("runsc"), ...setUp];
  const found = await firstExecutable(candidates);
  if (!found) throw new MissingPart(asked ? `${asked} cannot be run` : "runsc (gVisor) was not found", installRunsc);
  const file = await realpath(found);
  const [build, ownFlags, { size, mtimeMs, ino }] = await Promise.all([runscBuild(file), ownFlagsOf(file), stat(file)]);
  return { path: file, build, ownFlags, fileId: `${file}:${size}:${mtimeMs}:${ino}` };
}

/** Newer builds share one network namespace among gofers, and leave it mounted in the folder of their state, which then cannot be removed. */
async function ownFlagsOf(file: string): Promise<string[]> {
  const text = await helpOf(file, ["flags"]).catch(() => "");
  return hasFlag(text, "gofer-network-namespace") ? ["--gofer-network-namespace=new"] : [];
}

async function runscBuild(file: string): Promise<string> {
  let text: string;
  try {
    text = (await run(file, ["--version"], { timeout: 10_000 })).stdout;
  } catch (reason) {
    throw new MissingPart(`${file} --version failed: ${firstLine(reason)}`, installRunsc);
  }
  const version = parseRunscVersion(text);
  if (!version) throw new MissingPart(`${file} does not say its version`, installRunsc);
  if (version.date !== undefined && version.date < oldestRunsc) {
    throw new MissingPart(`${file} is of ${version.date}: too old to save a running sandbox`, installRunsc);
  }
  return version.build;
}

/** `date` is absent for builds that are named otherwise (a commit, a tag of a fork). */
export function parseRunscVersion(text: string): { build: string; date: number | undefined } | undefined {
  const name = /^runsc version (\S+)/m.exec(text)?.[1];
  if (!name) return undefined;
  const date = /(20\d{6})/.exec(name)?.[1];
  return { build: `runsc ${name}`, date: date ? Number(date) : undefined };
}

/** Flags that must exist: a build without one of them would silently do something else. */
const requiredFlags: readonly (readonly [args: readonly string[], flags: readonly string[]])[] = [
  [["flags"], ["network", "overlay2", "host-uds", "host-fifo", "cpu-num-from-quota", "ignore-cgroups"]],
  [
    ["help", "checkpoint"],
    ["image-path", "leave-running", "compression", "exclude-committed-zero-pages"],
  ],
  [
    ["help", "restore"],
    ["image-path", "detach", "bundle", "pid-file"],
  ],
];

/** @throws MissingPart naming the flag */
export async function requireFlags(runsc: Runsc): Promise<void> {
  await Promise.all(
    requiredFlags.map(async ([args, flags]) => {
      const text = await helpOf(runsc.path, args);
      for (const flag of flags) {
        if (hasFlag(text, flag)) continue;
        throw new MissingPart(`${runsc.build} has no --${flag}`, installRunsc);
      }
    }),
  );
}

async function helpOf(file: string, args: readonly string[]): Promise<string> {
  const { stdout, stderr } = await run(file, [...args], { timeout: 10_000 });
  return stdout + stderr;
}

function hasFlag(help: string, flag: string): boolean {
  return new RegExp(`^\\s*--?${flag}\\b`, "m").test(help);
}

const oldestNode = 20;

/**
 * The Node program that machines run when the host's own cannot serve (not below /usr, absent, or too old): the one that runs this server.
 * Undefined when the host's own is fine.
 */
export async function findNodeForMachines(): Promise<string | undefined> {
  for (const candidate of ["/usr/local/bin/node", "/usr/bin/node"]) {
    const file = await realpath(candidate).catch(() => undefined);
    // A link that leads out of /usr dangles in a machine, whose shell then takes the next one.
    if (!file?.startsWith("/usr/")) continue;
    const version = await run(file, ["--version"], { timeout: 10_000 }).catch(() => undefined);
    const major = Number(/^v(\d+)\./.exec(version?.stdout ?? "")?.[1] ?? 0);
    return major >= oldestNode ? undefined : realpath(process.execPath);
  }
  return realpath(process.execPath);
}
