// Running commands and saying what is done, for the set-up scripts. Plain JavaScript for Node 18, without dependencies.
import { execFile, spawn, spawnSync } from "node:child_process";
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
  return outputOf(result, command, args, options);
}

/** The same beside others. One that is told to end, by `signal` or `timeout`, has ended when this rejects. */
export function captureBeside(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    let said;
    const child = execFile(command, args, { encoding: "utf8", cwd: root, maxBuffer: 64 << 20, ...options }, (error, stdout, stderr) => {
      said = { error: child.pid === undefined ? error : undefined, stdout, stderr };
    });
    // Not in the above, which comes before the end of one that `signal` tells to end.
    child.once("close", (status, signal) => {
      try {
        resolve(outputOf({ ...said, status, signal }, command, args, options));
      } catch (failure) {
        reject(failure);
      }
    });
  });
}

function outputOf({ error, status, signal, stdout, stderr }, command, args, { remedy }) {
  if (error) throw new SetupError(`${command} could not be started: ${error.message}`, remedy);
  if (status !== 0) {
    const excerpt = startAndEnd(`${stdout ?? ""}${stderr ?? ""}`.trim());
    throw new SetupError(`${command} ${args.join(" ")} failed (${status ?? signal}):\n${excerpt}`, remedy);
  }
  return stdout;
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

/** Where nobody sees a line change, a new one says this often what is still being done. */
const reminderMs = 60_000;
const endingSignals = ["SIGINT", "SIGTERM"];

/** Runs `work` and prints one line about it: what, and how long it took. A signal ends this process at once, as if this were not here. */
export function step(title, work) {
  return runSteps({ [title]: () => work() }, new AbortController());
}

/**
 * Runs several such works beside each other, one line about each when it has ended. When one fails, the others are told so and waited for;
 * when this process is told to end, all are.
 *
 * @param works - title → `(options: { signal }) => note`
 */
export async function stepsBeside(works) {
  const failing = new AbortController();
  const interrupt = (name) => failing.abort(new SetupError(`interrupted by ${name}`, "Run the command again: what is done is kept."));
  for (const name of endingSignals) process.once(name, interrupt);
  try {
    await runSteps(works, failing);
  } finally {
    for (const name of endingSignals) process.off(name, interrupt);
  }
}

/** @param failing - is aborted by the first that fails */
async function runSteps(works, failing) {
  const started = Date.now();
  const pending = new Set(Object.keys(works));
  const { isTTY } = process.stderr;
  const say = (line) => process.stderr.write(isTTY ? `\r\x1b[K${line}` : line);
  const sayPending = () => isTTY && pending.size > 0 && say(`  ${[...pending].join(", ")} …`);
  const elapsed = () => `${((Date.now() - started) / 1000).toFixed(1)} s`;
  sayPending();
  const reminder = isTTY ? undefined : setInterval(() => say(`  … ${[...pending].join(", ")} after ${elapsed()}\n`), reminderMs);
  const results = Object.entries(works).map(async ([title, work]) => {
    try {
      const note = await work({ signal: failing.signal });
      say(`  ✓ ${title}${note ? ` (${note})` : ""} ${elapsed()}\n`);
    } catch (error) {
      if (!failing.signal.aborted) say(`  ✗ ${title}\n`);
      failing.abort(error);
    } finally {
      pending.delete(title);
      sayPending();
    }
  });
  await Promise.all(results);
  clearInterval(reminder);
  if (failing.signal.aborted) throw failing.signal.reason;
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
