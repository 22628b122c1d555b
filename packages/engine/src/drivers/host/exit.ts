import type { MachineExit, MachineResources } from "../../driver.ts";
import type { JsonObject } from "../../link/transport.ts";
import { readConsole } from "./console.ts";

/** What the kernel says on the console when a virtual machine has no memory left; it ends then. */
const outOfMemory = /Kernel panic - not syncing: .*[Oo]ut of memory|System is deadlocked on memory/;

/** How a kernel, or the agent that has not got as far as its link, says on the console why it ends its machine. Nothing that could be more than text. */
const lastWords = /(Kernel panic - not syncing|mitos: cannot boot): ([\x20-\x7e]{1,200})/g;

/** What a shim has said about the end of its machine. */
export function toMachineExit(told: JsonObject, resources: MachineResources | undefined): MachineExit {
  const reason = typeof told.reason === "string" ? told.reason.slice(0, 256) : undefined;
  const atUnixMs = typeof told.at_unix_ms === "number" ? told.at_unix_ms : Date.now();
  if (told.oom === true) {
    return {
      reason: "oom_killed",
      detail: `it used more memory than its limit${resources ? ` of ${resources.memSizeMiB} MiB` : ""}`,
      atUnixMs,
    };
  }
  if (told.process_limit === true) {
    const limit = resources ? ` of ${resources.processesMax}` : "";
    return { reason: "killed", detail: `it had more processes and threads than its limit${limit} allows`, atUnixMs };
  }
  switch (reason) {
    case undefined:
      return { reason: "lost", detail: "its shim on the host vanished", atUnixMs };
    case "exited":
      return { reason, detail: `its first process ${describeExitCode(told.exit_code)}`, atUnixMs };
    case "killed":
      return { reason, detail: `its host process was killed by signal ${String(told.signal)}`, atUnixMs };
    case "deadline":
      return { reason, detail: "its time was over", atUnixMs };
    case "oom_killed":
    case "lost":
      return { reason, detail: reason, atUnixMs };
    default:
      return { reason: "terminated", detail: reason, atUnixMs };
  }
}

/** runsc tells a signal from inside the machine as a shell does: 128 and its number. */
function describeExitCode(code: unknown): string {
  return typeof code === "number" && code > 128 ? `was killed from inside by signal ${code - 128}` : `ended with ${String(code)}`;
}

/**
 * The same of a virtual machine: a kernel that panics ends it as if it had been told to, and only its console says why. That is written by the
 * machine itself: nothing but what it says about itself follows from it.
 *
 * @param dir - of the machine on the host
 */
export async function toGuestExit(dir: string, told: JsonObject, resources: MachineResources | undefined): Promise<MachineExit> {
  if (told.reason !== "exited") return toMachineExit(told, resources);
  const said = Buffer.from(await readConsole(dir).catch(() => new Uint8Array())).toString("latin1");
  if (outOfMemory.test(said)) return toMachineExit({ ...told, oom: true }, resources);
  const exit = toMachineExit(told, resources);
  const [, who, why] = [...said.matchAll(lastWords)].at(-1) ?? [];
  if (exit.reason !== "exited" || told.exit_code !== 0) return exit;
  if (!why) return { ...exit, detail: "it ended by itself, and its console does not say why" };
  return { ...exit, detail: `${who === "mitos: cannot boot" ? "it could not boot" : "its kernel panicked"}: ${why.trim()}` };
}
