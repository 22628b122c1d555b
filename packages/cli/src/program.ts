import { Command, Option } from "commander";
import { globalFlags } from "./context.ts";

/** A verb: its description is here, so that nothing else of it is loaded unless it is the one that was asked for. */
interface Verb {
  readonly name: string;
  readonly description: string;
  readonly load: () => Promise<Command>;
}

const verbs: readonly Verb[] = [
  {
    name: "quickstart",
    description: "show the main thing: fork a running sandbox with its files, variables and processes",
    load: async () => (await import("./commands/quickstart.ts")).quickstartCommand(),
  },
  {
    name: "serve",
    description: "run a server on this machine",
    load: async () => (await import("./commands/serve.ts")).serveCommand(),
  },
  {
    name: "run",
    description: "create a sandbox, run a command in it, and terminate it; ends with the command's exit code",
    load: async () => (await import("./commands/run.ts")).runCommand(),
  },
  {
    name: "sandbox",
    description: "create, list, use, fork and terminate sandboxes",
    load: async () => (await import("./commands/sandbox.ts")).sandboxCommand(),
  },
  {
    name: "fork",
    description: "fork a running sandbox and print the ids of its children",
    load: async () => (await import("./commands/fork.ts")).forkCommand(),
  },
  {
    name: "shell",
    description: "open a terminal in a sandbox; `new` creates one and terminates it afterwards",
    load: async () => (await import("./commands/shell.ts")).shellCommand(),
  },
  {
    name: "cp",
    description: "copy files and folders into a sandbox and out of it",
    load: async () => (await import("./commands/cp.ts")).cpCommand(),
  },
  {
    name: "logs",
    description: "show what the processes of a sandbox have printed",
    load: async () => (await import("./commands/logs.ts")).logsCommand(),
  },
  {
    name: "template",
    description: "build, list, push, pull and delete templates",
    load: async () => (await import("./commands/template.ts")).templateCommand(),
  },
  {
    name: "du",
    description: "show what templates and caches take of the server's disk",
    load: async () => (await import("./commands/du.ts")).duCommand(),
  },
  {
    name: "prune",
    description: "remove what no template uses from the server's disk",
    load: async () => (await import("./commands/prune.ts")).pruneCommand(),
  },
  {
    name: "auth",
    description: "log in to a server that asks for keys, and manage its keys",
    load: async () => (await import("./commands/auth.ts")).authCommand(),
  },
  {
    name: "init",
    description: "check a key with its server and keep both for later commands",
    load: async () => (await import("./commands/init.ts")).initCommand(),
  },
  {
    name: "setup",
    description: "lay ready what an engine needs on this machine",
    load: async () => (await import("./commands/setup.ts")).setupCommand(),
  },
  {
    name: "doctor",
    description: "say which engine this machine gets, why, and what to install for a better one",
    load: async () => (await import("./commands/doctor.ts")).doctorCommand(),
  },
  {
    name: "completion",
    description: "print a script that completes commands and flags in a shell",
    load: async () => (await import("./commands/completion.ts")).completionCommand(),
  },
  {
    name: "version",
    description: "print the version",
    load: async () => (await import("./commands/version.ts")).versionCommand(),
  },
];

/**
 * The command tree. Of the verbs only the one that `args` ask for is whole; the others have a name and a description.
 *
 * @param args - `"all"`: every verb is whole
 * @param onRefused - told which command refused its arguments, before the CommanderError is thrown
 */
export async function buildProgram(args: readonly string[] | "all", onRefused: (command: Command) => void = () => {}): Promise<Command> {
  const program = new Command("mitos")
    .description("Isolated computers for agents that can be forked while they run.")
    .exitOverride()
    .showSuggestionAfterError()
    // So that what follows a verb is that verb's, and flags after the first word of a program are the program's.
    .enablePositionalOptions()
    .helpCommand("help [command]", "show what a command does");
  const asked = args === "all" ? undefined : args.filter((word) => verbs.some(({ name }) => name === word)).slice(0, 2);
  for (const { name, description, load } of verbs) {
    const command = asked === undefined || asked.includes(name) ? await load() : new Command(name);
    program.addCommand(command.description(description));
  }
  finish(program, onRefused);
  return program;
}

/** Gives the command and all below it what every command has. */
function finish(command: Command, onRefused: (command: Command) => void): void {
  if (command.parent) command.copyInheritedSettings(command.parent);
  command.configureOutput({ outputError: () => onRefused(command) });
  for (const { flags, description } of globalFlags) {
    if (!command.options.some((option) => option.long === new Option(flags).long)) {
      command.addOption(new Option(flags, description).helpGroup("Global flags:"));
    }
  }
  for (const child of command.commands) finish(child, onRefused);
}
