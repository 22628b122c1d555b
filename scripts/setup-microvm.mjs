// `mitos setup microvm`. The work is done by a process group of its own, so that an interrupted one ends as a whole, whatever it has started,
// and then what it has left is removed.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { ensureMicrovm, removeMicrovmLeftovers } from "./lib/microvm/index.mjs";
import { fail } from "./lib/run.mjs";

const insideGroup = "--inside-group";
/** For mmdebstrap to unmount what it has mounted. */
const endMsMax = 20_000;

if (process.argv.includes(insideGroup)) {
  process.stderr.write("Setting up microVMs\n");
  await ensureMicrovm().catch(fail);
} else {
  process.exitCode = await runGroup();
}

/** @returns the exit code */
async function runGroup() {
  const worker = spawn(process.execPath, [fileURLToPath(import.meta.url), insideGroup], { stdio: "inherit", detached: true });
  let interrupted = false;
  const interrupt = () => {
    interrupted = true;
    signalGroup(worker.pid, "SIGTERM");
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, interrupt);
  const exitCode = await new Promise((resolve, reject) => {
    worker.on("error", reject);
    worker.on("close", (code) => resolve(code ?? 1));
  });
  if (!interrupted) return exitCode;
  for (const until = Date.now() + endMsMax; hasMembers(worker.pid); await delay(20)) {
    if (Date.now() > until) signalGroup(worker.pid, "SIGKILL");
  }
  removeMicrovmLeftovers();
  process.stderr.write("\nerror: interrupted; what was whole stays\nnext:  Run it again: it goes on with what is missing.\n");
  return 130;
}

function signalGroup(group, signal) {
  try {
    process.kill(-group, signal);
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}

/** Not by a signal 0, which also reaches those that have ended and that nobody has waited for. */
function hasMembers(group) {
  return readdirSync("/proc").some((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      const [state, , itsGroup] = readFileSync(`/proc/${name}/stat`, "latin1")
        .replace(/^.*\) /s, "")
        .split(" ");
      return Number(itsGroup) === group && state !== "Z" && state !== "X";
    } catch {
      return false; // it has just ended
    }
  });
}
