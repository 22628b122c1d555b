import type { Sandbox, ServerSandbox } from "@mitos/sdk";
import { Command, Option } from "commander";
import { Creating } from "../building/creating.ts";
import { connectionOf, poolOf, toCommand, wholeNumber } from "../context.ts";
import { execHere } from "../exec-here.ts";
import { Exit } from "../exit.ts";
import { age, isJson, type OutputOptions, outputFlags, print, printJson, printTable } from "../output.ts";
import { ProgramCommand } from "../program-command.ts";
import { interruptible } from "../signals.ts";
import { timeoutFlag, waitFlags, waiting } from "../waiting.ts";
import { forkCommand } from "./fork.ts";
import { type ProgramOptions, toExecOptions, withProgramFlags } from "./run.ts";

const portMax = 65_535;

export function sandboxCommand(): Command {
  return new Command("sandbox")
    .addCommand(createCommand())
    .addCommand(listCommand())
    .addCommand(infoCommand())
    .addCommand(execCommand())
    .addCommand(forkCommand())
    .addCommand(pauseCommand())
    .addCommand(resumeCommand())
    .addCommand(previewCommand())
    .addCommand(forwardCommand())
    .addCommand(terminateCommand());
}

function createCommand(): Command {
  const command = new Command("create").description("create a sandbox and print its id").addOption(timeoutFlag());
  for (const flag of waitFlags()) command.addOption(flag);
  return command.action(async ({ timeout }: { timeout: number }) => {
    const pool = await poolOf(command);
    const creating = new Creating();
    const sandbox = await waiting(
      "creating the sandbox",
      timeout,
      (signal) => creating.create(connectionOf(command), pool, { signal }),
      () => creating.text,
    );
    print(sandbox.id);
  });
}

function listCommand(): Command {
  const command = new Command("ls")
    .description("list the sandboxes")
    .addOption(new Option("-A, --all-namespaces", "accepted for scripts of clusters; a server has no namespaces"));
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (options: OutputOptions) => {
    const { SandboxServer } = await import("@mitos/sdk");
    const rows = (await SandboxServer.fromAuth(connectionOf(command)).listSandboxes()).map(toRow);
    if (isJson(options)) printJson({ sandboxes: rows });
    else if (rows.length === 0) print("No sandboxes found.");
    else {
      printTable(
        ["NAME", "POOL", "PHASE", "NODE", "ENDPOINT", "AGE", "ISOLATION"],
        rows.map((row) => [row.name, row.pool, row.phase, row.node, row.endpoint, age(row.ageSeconds), row.isolation]),
      );
    }
  });
}

function infoCommand(): Command {
  const command = new Command("info").description("describe a sandbox").argument("<id>", "the sandbox");
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (id: string, options: OutputOptions) => {
    const info = toInfo(await (await connect(id, command)).info());
    if (isJson(options)) printJson(info);
    else printTable(["FIELD", "VALUE"], Object.entries(info).map(infoRow));
  });
}

function execCommand(): Command {
  return withProgramFlags(
    new ProgramCommand("exec", 1)
      .description("run a command in a sandbox; ends with the command's exit code")
      .argument("<id>", "the sandbox") as ProgramCommand,
  ).action(async (id: string, words: string[], options: ProgramOptions, command: Command) => {
    const line = toCommand(words);
    using interrupt = interruptible();
    throw new Exit(await execHere(await connect(id, command), line, toExecOptions(options), interrupt));
  });
}

function pauseCommand(): Command {
  return changeCommand("pause", "save a sandbox to disk and free its memory", "pausing", "paused", (sandbox) => sandbox.pause());
}

function resumeCommand(): Command {
  return changeCommand("resume", "let a paused sandbox go on", "resuming", "resumed", (sandbox) => sandbox.resume());
}

function changeCommand(
  name: string,
  description: string,
  doing: string,
  done: string,
  change: (sandbox: Sandbox) => Promise<void>,
): Command {
  const command = new Command(name).description(description).argument("<id>", "the sandbox").addOption(timeoutFlag());
  return command.action(async (id: string, { timeout }: { timeout: number }) => {
    await waiting(doing, timeout, async () => change(await connect(id, command)));
    print(`${done} ${id}`);
  });
}

function previewCommand(): Command {
  return new Command("preview")
    .description("print the URL of a port of a sandbox; whoever has it can open the port until it expires")
    .argument("<id>", "the sandbox")
    .argument("<port>", "where a program in it listens", wholeNumber("<port>", 1, portMax))
    .action(async (id: string, port: number, _options: object, command: Command) => {
      const { url, browserUrl } = await (await connect(id, command)).preview(port);
      print(browserUrl ?? url);
    });
}

function forwardCommand(): Command {
  return new Command("forward")
    .description("listen on the server's loopback for a port of a sandbox, and print where; it ends with the sandbox")
    .argument("<id>", "the sandbox")
    .argument("<port>", "where a program in it listens", wholeNumber("<port>", 1, portMax))
    .action(async (id: string, port: number, _options: object, command: Command) => {
      print(await (await connect(id, command)).forward(port));
    });
}

function terminateCommand(): Command {
  return new Command("terminate")
    .description("end a sandbox for good")
    .argument("<id>", "the sandbox")
    .option("--subtree", "also everything that was forked from it")
    .addOption(timeoutFlag())
    .action(async (id: string, options: { subtree?: boolean; timeout: number }, command: Command) => {
      await waiting("terminating", options.timeout, async () => {
        await (await connect(id, command)).terminate({ subtree: options.subtree });
      });
      print(`terminated ${id}`);
    });
}

async function connect(id: string, command: Command): Promise<Sandbox> {
  const { Sandbox } = await import("@mitos/sdk");
  return Sandbox.connect(id, connectionOf(command));
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

function toRow(sandbox: ServerSandbox): Row {
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

interface Info extends Row {
  reason: string | null;
  createdAt: string;
  deadline: string | null;
  parent: string | null;
  children: readonly string[];
  vcpuCount: number | null;
  memoryMiB: number | null;
  metadata: Readonly<Record<string, string>>;
}

function toInfo(sandbox: ServerSandbox): Info {
  const { deadlineUnix, resources } = sandbox;
  return {
    ...toRow(sandbox),
    reason: sandbox.endReason ?? null,
    createdAt: sandbox.createdAt,
    deadline: deadlineUnix ? new Date(deadlineUnix * 1000).toISOString() : null,
    parent: sandbox.parentId ?? null,
    children: sandbox.children ?? [],
    vcpuCount: resources?.vcpuCount ?? null,
    memoryMiB: resources?.memSizeMiB ?? null,
    metadata: sandbox.metadata ?? {},
  };
}

function infoRow([field, value]: [string, Info[keyof Info]]): [string, string | undefined] {
  if (field === "ageSeconds") return ["age", age(value as number)];
  if (Array.isArray(value)) return [field, value.join(" ")];
  if (typeof value === "object" && value !== null)
    return [
      field,
      Object.entries(value)
        .map(([key, of]) => `${key}=${of}`)
        .join(" "),
    ];
  return [field, value === null ? undefined : String(value)];
}
