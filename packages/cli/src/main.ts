import { type Command, CommanderError } from "commander";
import { printVersion } from "./commands/version.ts";
import { Exit, exitCodes, type Failure, toFailure } from "./exit.ts";
import { printFailure } from "./output.ts";
import { buildProgram } from "./program.ts";
import { interruptAll } from "./signals.ts";
import { keepYoungGenerationSmall } from "./young-generation.ts";

/** @param args - without the interpreter and the script. Sets the exit code of the process. */
export async function main(args: readonly string[]): Promise<void> {
  if (args[0] === "serve") keepYoungGenerationSmall();
  let hasReader = true;
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") process.exit(exitCodes.failure);
    hasReader = false;
    if (!interruptAll("by the reader of its output, which has gone")) process.exit(exitCodes.ok);
  });
  // What is said there has nobody to hear it any more; the work, such as that of a server, goes on and ends in order.
  process.stderr.on("error", () => undefined);
  const exitCode = await run(args, (failure) => {
    if (hasReader) printFailure(failure);
  });
  // A reader that goes away (`mitos … | head`) is no failure of ours.
  process.exitCode = hasReader ? exitCode : exitCodes.ok;
}

/** @returns the exit code; everything that there is to say has been printed */
export async function run(args: readonly string[], report = printFailure): Promise<number> {
  // Only in first place: elsewhere they may belong to the program in the sandbox.
  if (args[0] === "--version" || args[0] === "-v") {
    printVersion();
    return exitCodes.ok;
  }
  const refused: { at?: Command } = {};
  const program = await buildProgram(args, (command) => {
    refused.at = command;
  });
  if (args.length === 0) {
    program.outputHelp({ error: true });
    return exitCodes.usage;
  }
  try {
    await program.parseAsync([...args], { from: "user" });
    return Number(process.exitCode ?? exitCodes.ok);
  } catch (error) {
    if (error instanceof Exit) return error.exitCode;
    if (error instanceof CommanderError && !refused.at) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage; // help was shown
    const failure = error instanceof CommanderError ? wrongUsage(error, refused.at!) : toFailure(error);
    report(failure);
    return failure.exitCode;
  }
}

/** What commander refused, in the form of every other failure. */
function wrongUsage({ message }: CommanderError, at: Command): Failure {
  const [problem = "", suggestion] = message.split("\n");
  const names = [];
  for (let command: Command | null = at; command; command = command.parent) names.unshift(command.name());
  const guess = suggestion?.replace(/^\((.*)\)$/, "$1 ") ?? "";
  return {
    exitCode: exitCodes.usage,
    message: problem.replace(/^error: /, ""),
    nextStep: `${guess}See \`${names.join(" ")} --help\`.`,
  };
}

if (import.meta.main) await main(process.argv.slice(2));
