import { create, Sandbox, SandboxServer } from "@mitos/sdk";
import { Command } from "commander";
import { connectionOf, type PassThrough, poolOf, positiveInteger, toCommand, wholeNumber } from "../context.ts";
import { execHere } from "../exec-here.ts";
import { CommandError, Exit, exitCodes } from "../exit.ts";
import { age, outputFormat, print, printJson, table } from "../output.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

const portMax = 65_535;

export function sandboxCommand(passThrough: PassThrough): Command {
  return new Command("sandbox")
    .description("create, list, use, fork and terminate sandboxes")
    .addCommand(createCommand())
    .addCommand(listCommand())
    .addCommand(execCommand(passThrough))
    .addCommand(forkCommand())
    .addCommand(previewCommand())
    .addCommand(forwardCommand())
    .addCommand(terminateCommand());
}

function createCommand(): Command {
  return new Command("create")
    .description("create a sandbox and print its id")
    .option("--timeout <seconds>", "give up waiting after this time (0: wait)", wholeNumber("--timeout", 0), 0)
    .action(async ({ timeout }: { timeout: number }, command: Command) => {
      const sandbox = await waiting("creating the sandbox", timeout, (signal) =>
        create({ ...connectionOf(command), template: poolOf(command), signal }),
      );
      print(sandbox.id);
    });
}

function listCommand(): Command {
  return new Command("ls")
    .description("list the sandboxes")
    .option("-o, --output <format>", "table or json")
    .option("--json", "the same as -o json")
    .action(async (options: { output?: string; json?: boolean }, command: Command) => {
      const format = outputFormat(options);
      const rows = (await SandboxServer.fromAuth(connectionOf(command)).listSandboxes()).map(toRow);
      if (format === "json") printJson({ sandboxes: rows });
      else if (rows.length === 0) print("No sandboxes found.");
      else {
        const header = ["NAME", "POOL", "PHASE", "NODE", "ENDPOINT", "AGE", "ISOLATION"];
        print(
          table(
            header,
            rows.map((row) => [row.name, row.pool, row.phase, row.node, row.endpoint, age(row.ageSeconds), row.isolation]),
          ),
        );
      }
    });
}

function execCommand(passThrough: PassThrough): Command {
  return new Command("exec")
    .description("run a command in a sandbox; ends with the command's exit code")
    .argument("<id>", "the sandbox")
    .argument("[command...]", "one word: a line for the shell; several: a program and its arguments; after `--` anything")
    .option("--timeout <seconds>", "time-out of the command (0: the server's default)", wholeNumber("--timeout", 0), 0)
    .allowUnknownOption()
    .action(async (id: string, words: string[], options: { timeout: number }, command: Command) => {
      const line = toCommand(words, passThrough);
      using interrupt = interruptible();
      const sandbox = await Sandbox.connect(id, connectionOf(command));
      throw new Exit(await execHere(sandbox, line, { timeoutSeconds: options.timeout || undefined, signal: interrupt.signal }));
    });
}

/** `mitos fork` and `mitos sandbox fork` */
export function forkCommand(): Command {
  return new Command("fork")
    .description("fork a running sandbox and print the ids of its children")
    .argument("<id>", "the sandbox; it runs on")
    .option("--replicas <n>", "how many children", positiveInteger("--replicas"), 1)
    .option("--count <n>", "the same; wins over --replicas", wholeNumber("--count", 0), 0)
    .option("--timeout <seconds>", "give up waiting after this time (0: wait)", wholeNumber("--timeout", 0), 0)
    .action(async (id: string, options: { replicas: number; count: number; timeout: number }, command: Command) => {
      const children = await waiting("forking", options.timeout, async (signal) => {
        const parent = await Sandbox.connect(id, connectionOf(command));
        return parent.fork({ count: options.count || options.replicas, signal });
      });
      for (const child of children) print(child.id);
    });
}

function previewCommand(): Command {
  return new Command("preview")
    .description("print the URL of a port of a sandbox; whoever has it can open the port until it expires")
    .argument("<id>", "the sandbox")
    .argument("<port>", "where a program in it listens", wholeNumber("<port>", 1, portMax))
    .action(async (id: string, port: number, _options: object, command: Command) => {
      const sandbox = await Sandbox.connect(id, connectionOf(command));
      const { url, browserUrl } = await sandbox.preview(port);
      print(browserUrl ?? url);
    });
}

function forwardCommand(): Command {
  return new Command("forward")
    .description("listen on the server's loopback for a port of a sandbox, and print where; it ends with the sandbox")
    .argument("<id>", "the sandbox")
    .argument("<port>", "where a program in it listens", wholeNumber("<port>", 1, portMax))
    .action(async (id: string, port: number, _options: object, command: Command) => {
      const sandbox = await Sandbox.connect(id, connectionOf(command));
      print(await sandbox.forward(port));
    });
}

function terminateCommand(): Command {
  return new Command("terminate")
    .description("end a sandbox for good")
    .argument("<id>", "the sandbox")
    .option("--subtree", "also everything that was forked from it")
    .option("--timeout <seconds>", "give up waiting after this time (0: wait)", wholeNumber("--timeout", 0), 0)
    .action(async (id: string, options: { subtree?: boolean; timeout: number }, command: Command) => {
      await waiting("terminating", options.timeout, async () => {
        const sandbox = await Sandbox.connect(id, connectionOf(command));
        await sandbox.terminate({ subtree: options.subtree });
      });
      print(`terminated ${id}`);
    });
}

/** @param timeoutSeconds - 0 = as long as it takes. Its end is exit code 124. */
async function waiting<T>(what: string, timeoutSeconds: number, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  using interrupt = interruptible();
  if (timeoutSeconds === 0) return withProgress(what, work(interrupt.signal));
  const deadline = AbortSignal.timeout(timeoutSeconds * 1000);
  const elapsed = new Promise<never>((_, reject) => {
    deadline.addEventListener("abort", () => reject(waitElapsed(what, timeoutSeconds)), { once: true });
  });
  return withProgress(what, Promise.race([work(AbortSignal.any([interrupt.signal, deadline])), elapsed]));
}

function waitElapsed(what: string, seconds: number): CommandError {
  const remedy = "Look with `mitos sandbox ls` at what exists now, and give it more time.";
  return new CommandError(`${what} was not done in time`, `${seconds} s have passed`, remedy, exitCodes.timedOut);
}

interface Row {
  name: string;
  pool: string;
  phase: string;
  node: string;
  endpoint: string;
  ageSeconds: number;
  isolation: string;
}

const phases: Readonly<Record<string, string>> = {
  starting: "Restoring",
  running: "Ready",
  pausing: "Paused",
  paused: "Paused",
  resuming: "Restoring",
  ended: "Terminated",
  failed: "Failed",
};

function toRow(sandbox: Awaited<ReturnType<SandboxServer["listSandboxes"]>>[number]): Row {
  const created = Date.parse(sandbox.createdAt);
  return {
    name: sandbox.id,
    pool: sandbox.templateId,
    phase: phases[sandbox.state ?? "running"] ?? sandbox.state ?? "",
    node: "",
    endpoint: sandbox.endpoint,
    ageSeconds: Number.isNaN(created) ? 0 : Math.max(0, Math.round((Date.now() - created) / 1000)),
    isolation: sandbox.isolation ?? "",
  };
}
