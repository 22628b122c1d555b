import { readdirSync, readFileSync } from "node:fs";

/** A process and all that descend from it. Those that end meanwhile are left out. */
export function treeOf(pid: number): readonly number[] {
  return [pid, ...childrenOf(pid).flatMap(treeOf)];
}

/** The letter that `ps` shows: `T` is stopped. Empty when it is gone. */
export function stateOf(pid: number): string {
  return statOf(pid)[0] ?? "";
}

/** Processor time that it has used, in hundredths of a second: `getconf CLK_TCK` of every Linux. 0 when it is gone. */
export function ticksOf(pid: number): number {
  const fields = statOf(pid);
  return Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
}

function childrenOf(pid: number): readonly number[] {
  return unlessGone(() => readdirSync(`/proc/${pid}/task`), []).flatMap((task) =>
    unlessGone(() => readFileSync(`/proc/${pid}/task/${task}/children`, "latin1"), "")
      .split(" ")
      .filter(Boolean)
      .map(Number),
  );
}

/** What follows the name, which may hold anything: state first, utime and stime as the 12th and 13th. */
function statOf(pid: number): readonly string[] {
  const text = unlessGone(() => readFileSync(`/proc/${pid}/stat`, "latin1"), "");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

function unlessGone<T>(look: () => T, otherwise: T): T {
  try {
    return look();
  } catch {
    return otherwise;
  }
}
