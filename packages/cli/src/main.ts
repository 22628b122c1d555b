import { Command, CommanderError } from "commander";
import { authCommand } from "./commands/auth.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { quickstartCommand } from "./commands/quickstart.ts";
import { runCommand } from "./commands/run.ts";
import { forkCommand, sandboxCommand } from "./commands/sandbox.ts";
import { serveCommand } from "./commands/serve.ts";
import { shellCommand } from "./commands/shell.ts";
import { printVersion, versionCommand } from "./commands/version.ts";
import type { PassThrough } from "./context.ts";
import { Exit, exitCodes, toFailure } from "./exit.ts";
import { printFailure } from "./output.ts";

/** @param args - without the interpreter and the script. Sets the exit code of the process. */
export async function main(args: readonly string[]): Promise<void> {
  // A reader of our output that goes away (`mitos … | head`) is no failure of ours.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : exitCodes.failure));
  process.exitCode = await run(args);
}

async function run(args: readonly string[]): Promise<number> {
  const separator = args.indexOf("--");
  const own = separator < 0 ? args : args.slice(0, separator);
  const passThrough = separator < 0 ? [] : args.slice(separator + 1);
  const program = buildProgram(passThrough);
  if (own.length === 0) {
    program.outputHelp({ error: true });
    return exitCodes.usage;
  }
  // Only in first place: elsewhere they may belong to the program in the sandbox.
  if (own[0] === "--version" || own[0] === "-v") {
    printVersion();
    return exitCodes.ok;
  }
  try {
    await program.parseAsync([...own], { from: "user" });
    return Number(process.exitCode ?? exitCodes.ok);
  } catch (error) {
    if (error instanceof Exit) return error.exitCode;
    // commander has printed it.
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    const failure = toFailure(error);
    printFailure(failure);
    return failure.exitCode;
  }
}

function buildProgram(passThrough: PassThrough): Command {
  const program = new Command("mitos")
    .description("Isolated computers for agents that can be forked while they run.")
    .option(
      "--server <url>",
      "address of the server (default: MITOS_BASE_URL, else http://127.0.0.1:8080; https://mitos.run with a key of that service)",
    )
    .option("--api-key <key>", "key for the server (default: MITOS_API_KEY, else the saved one)")
    .option("--pool <name>", "template that sandboxes are created from (default: python)")
    .exitOverride()
    .showSuggestionAfterError()
    .helpCommand("help [command]", "show what a command does");
  const commands = [
    quickstartCommand(),
    serveCommand(),
    runCommand(passThrough),
    sandboxCommand(passThrough),
    forkCommand(),
    shellCommand(),
    authCommand(),
    doctorCommand(),
    versionCommand(),
  ];
  for (const command of commands) program.addCommand(inheritSettings(command, program));
  return program;
}

function inheritSettings(command: Command, parent: Command): Command {
  command.copyInheritedSettings(parent);
  for (const child of command.commands) inheritSettings(child, command);
  return command;
}

if (import.meta.main) await main(process.argv.slice(2));
