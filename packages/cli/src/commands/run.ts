import { create, type Sandbox } from "@mitos/sdk";
import { Command } from "commander";
import { connectionOf, type PassThrough, poolOf, toCommand, wholeNumber } from "../context.ts";
import { execHere } from "../exec-here.ts";
import { Exit, exitCodes } from "../exit.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

export function runCommand(passThrough: PassThrough): Command {
  return new Command("run")
    .description("create a sandbox, run a command in it, and terminate it; ends with the command's exit code")
    .argument("[command...]", "one word: a line for the shell; several: a program and its arguments; after `--` anything")
    .option("--timeout <seconds>", "time-out of the command (0: the server's default)", wholeNumber("--timeout", 0), 0)
    .allowUnknownOption()
    .action(async (words: string[], options: { timeout: number }, command: Command) => {
      const line = toCommand(words, passThrough);
      using interrupt = interruptible();
      const { signal } = interrupt;
      // Not aborted by Ctrl-C: a sandbox that is half made could not be terminated.
      const sandbox = await withProgress("creating the sandbox", create({ ...connectionOf(command), template: poolOf(command) }));
      const work = async () => {
        if (signal.aborted) return exitCodes.interrupted;
        return execHere(sandbox, line, { timeoutSeconds: options.timeout || undefined, signal });
      };
      throw new Exit(await thenTerminate(sandbox, work));
    });
}

/** The sandbox is gone when this ends, whatever became of the work; a failure to terminate never hides the work's own. */
async function thenTerminate<T>(sandbox: Sandbox, work: () => Promise<T>): Promise<T> {
  await using _ended = sandbox;
  return await work();
}
