import type { Sandbox } from "@mitos/sdk";
import { type Command, Option } from "commander";
import { Creating } from "../building/creating.ts";
import { connectionOf, environmentEntry, poolOf, toCommand, wholeNumber } from "../context.ts";
import { type ExecHereOptions, execHere } from "../exec-here.ts";
import { Exit, exitCodes } from "../exit.ts";
import { ProgramCommand } from "../program-command.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

interface RunOptions extends ProgramOptions {
  keep?: boolean;
}

export function runCommand(): Command {
  return withProgramFlags(new ProgramCommand("run", 0))
    .addOption(new Option("--keep", "leave the sandbox running and print its id on standard error"))
    .addOption(new Option("--rm", "terminate the sandbox afterwards, which is the default").conflicts("keep"))
    .action(async (words: string[], { keep = false, ...options }: RunOptions, command: Command) => {
      const line = toCommand(words);
      const pool = await poolOf(command);
      using interrupt = interruptible();
      const creating = new Creating();
      const sandbox = await withProgress(
        () => creating.text,
        creating.create(connectionOf(command), pool, { interrupt: interrupt.signal }),
      );
      const work = async () =>
        interrupt.signal.aborted ? exitCodes.interrupted : execHere(sandbox, line, toExecOptions(options), interrupt);
      if (!keep) throw new Exit(await thenTerminate(sandbox, work));
      process.stderr.write(`${sandbox.id}\n`);
      throw new Exit(await work());
    });
}

/** The sandbox is gone when this ends, whatever became of the work; a failure to terminate never hides the work's own. */
async function thenTerminate<T>(sandbox: Sandbox, work: () => Promise<T>): Promise<T> {
  await using _ended = sandbox;
  return await work();
}

export interface ProgramOptions {
  timeout: number;
  env?: Record<string, string>;
  cwd?: string;
}

export function toExecOptions({ timeout, env, cwd }: ProgramOptions): ExecHereOptions {
  return { timeoutSeconds: timeout, env, cwd };
}

/** What `run` and `sandbox exec` have in common. */
export function withProgramFlags(command: ProgramCommand): ProgramCommand {
  command
    .argument("[command...]", "one word: a line for the shell; several: a program and its arguments; after `--` anything")
    .option("--timeout <seconds>", "time-out of the command (0: the server's default)", wholeNumber("--timeout", 0), 0)
    .option("--env <NAME=value>", "a variable of the command's environment; may be given several times", environmentEntry)
    .option("--cwd <dir>", "where the command runs (default: /workspace)")
    .addHelpText(
      "after",
      "\nFlags of mitos stand in front of the command's first word or at the end of the line; what stands between them, or after --, is the command's.",
    );
  return command;
}
