import type { ProcessEvent, ProcessInfo, Sandbox } from "@mitos/sdk";
import { Command, Option } from "commander";
import { connectionOf, positiveInteger, wholeNumber } from "../context.ts";
import { CommandError, exitCodes, UsageError } from "../exit.ts";
import { age, isJson, type OutputOptions, outputFlags, print, printJson, printTable, write } from "../output.ts";
import { interruptible } from "../signals.ts";

interface LogsOptions extends OutputOptions {
  console?: boolean;
  follow?: boolean;
  tail?: number;
}

export function logsCommand(): Command {
  const command = new Command("logs")
    .argument("<id>", "the sandbox")
    .argument("[pid]", "of one process (default: all of them, each under a heading)", wholeNumber("<pid>", 2))
    .option("-f, --follow", "go on until the processes have ended")
    .option("--tail <n>", "only the last lines of each process", positiveInteger("--tail"))
    .addOption(
      new Option("--console", "instead, what its machine has said beside its programs, the last 256 KiB").conflicts([
        "follow",
        "tail",
        "output",
        "json",
      ]),
    );
  for (const flag of outputFlags()) command.addOption(flag);
  return command
    .addHelpText(
      "after",
      "\nWith -o the processes themselves are listed. Of output that nobody read the sandbox keeps the last 256 KiB a stream.",
    )
    .action(async (id: string, pid: number | undefined, options: LogsOptions) => {
      if (options.console && pid !== undefined) {
        throw new UsageError("--console is of the whole sandbox, and not of one process", `See it with: mitos logs ${id} --console`);
      }
      const { Sandbox } = await import("@mitos/sdk");
      const sandbox = await Sandbox.connect(id, connectionOf(command));
      if (options.console) return write(process.stdout, await sandbox.console());
      const processes = select(await sandbox.processes(), pid, id);
      if (options.output || options.json) list(processes, isJson(options));
      else if (processes.length === 0) process.stderr.write("No processes found.\n");
      else await show(sandbox, processes, pid === undefined, options);
    });
}

function select(processes: ProcessInfo[], pid: number | undefined, id: string): ProcessInfo[] {
  const chosen = pid === undefined ? processes : processes.filter((each) => each.pid === pid);
  if (pid === undefined || chosen.length > 0) return chosen;
  const remedy = `See which there are: mitos logs ${id} -o table`;
  throw new CommandError(
    `there is no process ${pid} in ${id}`,
    "it was never started on its own, or ended long ago",
    remedy,
    exitCodes.notFound,
  );
}

function list(processes: readonly ProcessInfo[], asJson: boolean): void {
  if (asJson) printJson({ processes });
  else if (processes.length === 0) print("No processes found.");
  else {
    printTable(
      ["PID", "STATE", "EXIT", "AGE", "STDOUT", "STDERR", "COMMAND"],
      processes.map((each) => [
        String(each.pid),
        each.state,
        each.exitCode === null ? undefined : String(each.exitCode),
        age(Date.now() / 1000 - each.startedUnix),
        String(each.stdoutBytes),
        String(each.stderrBytes),
        oneLine(each.command),
      ]),
    );
  }
}

/** First what there is, one process after another; then, when following, what comes, as it comes. */
async function show(
  sandbox: Sandbox,
  processes: readonly ProcessInfo[],
  withHeadings: boolean,
  { follow, tail }: LogsOptions,
): Promise<void> {
  using interrupt = interruptible();
  const headings = withHeadings ? new Headings() : undefined;
  const positions = new Map<number, Position>();
  for (const each of processes) {
    headings?.begin(each);
    positions.set(each.pid, await showKept(sandbox, each.pid, tail, interrupt.signal));
  }
  if (!follow) return;
  const running = processes.filter(({ state }) => state === "running");
  await Promise.all(
    running.map(async (each) => {
      const events = sandbox.connectProcess(each.pid).output({ ...positions.get(each.pid), signal: interrupt.signal });
      for await (const event of events) {
        if (event.type !== "exit") headings?.begin(each);
        await showEvent(event);
      }
    }),
  );
}

interface Position {
  stdoutFrom: number;
  stderrFrom: number;
}

/** @returns where its output goes on */
async function showKept(sandbox: Sandbox, pid: number, tail: number | undefined, signal: AbortSignal): Promise<Position> {
  const position = { stdoutFrom: 0, stderrFrom: 0 };
  const kept: ProcessEvent[] = [];
  for await (const event of sandbox.connectProcess(pid).output({ follow: false, signal })) {
    if (event.type === "stdout" || event.type === "stderr") position[`${event.type}From`] = event.offset + event.data.length;
    else if (event.type === "gap") position[`${event.stream}From`] = event.to;
    if (tail === undefined) await showEvent(event);
    else kept.push(event);
  }
  if (tail !== undefined) for (const event of lastLines(kept, tail)) await showEvent(event);
  return position;
}

const newline = 0x0a;

/** The events with the last lines of both streams, in the order in which they came. A last line without an end counts. */
export function lastLines(events: readonly ProcessEvent[], count: number): ProcessEvent[] {
  const kept: ProcessEvent[] = [];
  let lines = 0;
  for (const event of events.toReversed()) {
    if (event.type !== "stdout" && event.type !== "stderr") continue;
    const { data } = event;
    for (let at = data.length - 1; at >= 0; at--) {
      const isVeryLast = kept.length === 0 && at === data.length - 1;
      if (data[at] !== newline || isVeryLast || ++lines < count) continue;
      return [{ ...event, data: data.subarray(at + 1) }, ...kept];
    }
    kept.unshift(event);
  }
  return kept;
}

async function showEvent(event: ProcessEvent): Promise<void> {
  if (event.type === "stdout") await write(process.stdout, event.data);
  else if (event.type === "stderr") await write(process.stderr, event.data);
  else if (event.type === "gap") process.stderr.write(`mitos: ${event.to - event.from} bytes of ${event.stream} are no longer kept\n`);
}

/** Says whose output follows, when that changes. */
class Headings {
  #pid: number | undefined;

  begin({ pid, command }: ProcessInfo): void {
    if (pid === this.#pid) return;
    print(`${this.#pid === undefined ? "" : "\n"}==> ${pid} ${oneLine(command)} <==`);
    this.#pid = pid;
  }
}

function oneLine(command: string): string {
  return command.replaceAll(/\s+/g, " ");
}
