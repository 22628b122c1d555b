// Running commands and saying what is done, for the set-up scripts. Plain JavaScript for Node 18, without dependencies.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
export const cache = path.join(root, ".cache");
export const pinnedNode = path.join(root, "node_modules/node/bin/node");

/** An expected failure: printed without a stack, with what to do next. */
export class SetupError extends Error {
  constructor(message, remedy) {
    super(message);
    this.remedy = remedy;
  }
}

/** Runs a command to its end and returns its output; throws a SetupError with the end of it when it fails. */
export function capture(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: "utf8", cwd: root, maxBuffer: 64 << 20, ...options });
  if (result.error) throw new SetupError(`${command} could not be started: ${result.error.message}`, options.remedy);
  if (result.status !== 0) {
    const excerpt = startAndEnd(`${result.stdout ?? ""}${result.stderr ?? ""}`.trim());
    throw new SetupError(`${command} ${args.join(" ")} failed (${result.status ?? result.signal}):\n${excerpt}`, options.remedy);
  }
  return result.stdout;
}

/** Some tools name the cause first, others last. */
function startAndEnd(text) {
  const lines = text.split("\n");
  return (lines.length <= 24 ? lines : [...lines.slice(0, 12), "…", ...lines.slice(-12)]).join("\n");
}

/** Whether a command exists and answers `--version` (or `args`) with success, with `env` beside the environment. */
export function answers(command, args = ["--version"], env = {}) {
  const result = spawnSync(command, args, { stdio: "ignore", env: { ...process.env, ...env } });
  return !result.error && result.status === 0;
}

/** Runs a command on this terminal; resolves with its exit code. Ctrl-C reaches it and is waited for. */
export function attach(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: "inherit", cwd: root, ...options });
    const ignore = () => {};
    process.on("SIGINT", ignore);
    child.on("error", reject);
    child.on("close", (code, signal) => {
      process.off("SIGINT", ignore);
      resolve(code ?? (signal === "SIGINT" ? 130 : 1));
    });
  });
}

/** Runs `work` and prints one line about it: what, and how long it took. */
export async function step(title, work) {
  const started = Date.now();
  const overwrite = process.stderr.isTTY ? "\r" : "";
  if (overwrite) process.stderr.write(`  ${title} …`);
  try {
    const note = await work();
    const seconds = ((Date.now() - started) / 1000).toFixed(1);
    process.stderr.write(`${overwrite}  ✓ ${title}${note ? ` (${note})` : ""} ${seconds} s\n`);
  } catch (error) {
    process.stderr.write(`${overwrite}  ✗ ${title}\n`);
    throw error;
  }
}

/** Prints an expected failure with its remedy and ends; anything else is a defect and keeps its stack. */
export function fail(error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`\nerror: ${error.message}\n`);
  if (error.remedy) process.stderr.write(`next:  ${error.remedy}\n`);
  process.exit(1);
}

/** Removes what set-ups that were killed have left in a folder: their names are `prefix` and the number of the process. */
export function removeLeftovers(dir, prefix) {
  for (const name of existsSync(dir) ? readdirSync(dir) : []) {
    const pid = name.startsWith(prefix) ? name.slice(prefix.length) : "";
    if (!/^\d+$/.test(pid) || isRunning(Number(pid))) continue;
    const leftover = path.join(dir, name);
    try {
      rmSync(leftover, { recursive: true, force: true });
    } catch (error) {
      throw new SetupError(`what an interrupted set-up has left cannot be removed: ${error.message}`, `Remove ${leftover} as root.`);
    }
  }
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
