import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { ForkedSandboxes, Sandbox } from "@mitos/sdk";
import { Command } from "commander";
import { CommandError, Exit, exitCodes } from "../exit.ts";
import { type EngineFlags, engineFlags, engineOptions, startLocalServer } from "../local-server.ts";
import { print } from "../output.ts";
import { interruptible } from "../signals.ts";
import { duration, Transcript } from "../transcript.ts";
import { askServer, type ServerState, startHttpServer } from "./quickstart/http-server.ts";

export function quickstartCommand(): Command {
  const command = new Command("quickstart");
  for (const option of engineOptions()) command.addOption(option);
  return command.action(quickstart);
}

const childCount = 3;
const file = "/workspace/notes.txt";
const variable = "notes";

async function quickstart(_options: unknown, command: Command): Promise<void> {
  const chosen = engineFlags(command);
  using interrupt = interruptible();
  const transcript = new Transcript(interrupt.signal);
  const dataDir = await mkdtemp(path.join(os.tmpdir(), "mitos-quickstart-"));
  try {
    await serveAndShow(transcript, dataDir, chosen);
  } catch (error) {
    if (!interrupt.signal.aborted) throw error;
    process.stderr.write("interrupted; everything that was started has been ended\n");
    throw new Exit(exitCodes.interrupted);
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
  print(`\nAll of it held. ${duration(transcript.totalMs())} in total; nothing is left running.`);
}

async function serveAndShow(transcript: Transcript, dataDir: string, flags: EngineFlags): Promise<void> {
  transcript.heading("A server, and a sandbox in which things run");
  // Not raced against Ctrl-C: what is half started could not be ended.
  const starting = startLocalServer({ host: "127.0.0.1", port: 0 }, dataDir, flags);
  try {
    const server = await transcript.step(
      "start the server",
      () => starting,
      ({ url, isolation }) => `${url}, isolation ${isolation}`,
    );
    await show(transcript, server.url);
    await transcript.step("terminate everything, stop the server", () => server.close("end"));
  } finally {
    const server = await starting.catch(() => undefined);
    await server?.close("end");
  }
}

/** The main job, through the SDK over HTTP. Every line that is printed with ✓ has been compared with what was expected. */
async function show(transcript: Transcript, baseUrl: string): Promise<void> {
  const { create, SandboxServer } = await import("@mitos/sdk");
  const { step } = { step: transcript.step.bind(transcript) };
  const inherited = randomBytes(4).toString("hex");

  await step("prepare the template `python`", () => new SandboxServer(baseUrl).ensureTemplate("python"));
  const parent = await step(
    "create a sandbox from it",
    () => create({ baseUrl, template: "python" }),
    ({ id }) => id,
  );
  await step(
    "run a command",
    () => version(parent),
    (text) => `python3 --version: ${text}`,
  );
  await step(
    "write a file",
    () => parent.files.write(file, inherited),
    () => `${file}: ${inherited}`,
  );
  await step(
    "set a variable in the live interpreter",
    () => setVariable(parent, inherited),
    () => `${variable} = "${inherited}"`,
  );
  const http = await step(
    "start an HTTP server inside",
    () => startHttpServer(parent, inherited),
    ({ pid, port, token }) => `pid ${pid}, port ${port}, its random token ${token}`,
  );

  transcript.heading(`Fork the running sandbox into ${childCount}`);
  const children = await step("fork it while all of that runs", () => fork(parent), forkNote);
  for (const child of children) {
    await step(
      `${child.id} has all three`,
      () => requireState(child, http, inherited),
      (state) => `file ✓  variable ✓  HTTP server ✓ (pid ${state.pid}, same token)`,
    );
  }

  transcript.heading("Let the children go their own ways");
  const own = children.map((_, index) => `child-${index + 1}-${randomBytes(4).toString("hex")}`);
  await step(
    `write other values in all ${childCount} at once`,
    () => Promise.all(children.map((child, index) => diverge(child, http, own[index]!))),
    () => "file, variable and server content",
  );
  for (const [index, child] of children.entries()) {
    await step(
      `${child.id} sees only its own writes`,
      () => requireState(child, http, own[index]!),
      () => own[index]!,
    );
  }
  await step(
    `${parent.id}, the parent, sees none`,
    () => requireState(parent, http, inherited),
    () => inherited,
  );

  transcript.heading("Clean up");
}

async function version(sandbox: Sandbox): Promise<string> {
  const result = await sandbox.exec(["python3", "--version"]);
  requireEqual("the exit code of python3 --version", result.exitCode, 0);
  return result.stdout.trim();
}

async function setVariable(sandbox: Sandbox, value: string): Promise<void> {
  const execution = await sandbox.runCode(`${variable} = ${JSON.stringify(value)}`);
  requireEqual("the error of the assignment", execution.error?.value ?? null, null);
}

async function fork(parent: Sandbox): Promise<ForkedSandboxes> {
  const children = await parent.fork(childCount);
  requireEqual("the number of children", children.length, childCount);
  return children;
}

function forkNote({ pausedMs, snapshotBytes }: ForkedSandboxes): string {
  const paused = pausedMs === undefined ? "" : `the parent stood still for ${duration(pausedMs)}`;
  const saved = snapshotBytes ? `, ${(snapshotBytes / 2 ** 20).toFixed(1)} MiB saved` : "";
  return `${paused}${saved}`;
}

async function diverge(child: Sandbox, http: ServerState, value: string): Promise<void> {
  await child.files.write(file, value);
  await setVariable(child, value);
  await askServer(child, http.port, value);
}

/** The file, the variable and the same HTTP server process, each with the value that this sandbox must see. */
async function requireState(sandbox: Sandbox, http: ServerState, value: string): Promise<ServerState> {
  const [content, execution, state] = await Promise.all([
    sandbox.files.read(file),
    sandbox.runCode(variable),
    askServer(sandbox, http.port),
  ]);
  requireEqual(`${file} in ${sandbox.id}`, content, value);
  requireEqual(`the error of reading ${variable} in ${sandbox.id}`, execution.error?.value ?? null, null);
  requireEqual(`${variable} in ${sandbox.id}`, execution.text, `'${value}'`);
  requireEqual(`what the HTTP server in ${sandbox.id} serves`, state.note, value);
  requireEqual(`the token of the HTTP server in ${sandbox.id}`, state.token, http.token);
  requireEqual(`the pid of the HTTP server in ${sandbox.id}`, state.pid, http.pid);
  return state;
}

function requireEqual(what: string, got: unknown, wanted: unknown): void {
  if (got === wanted) return;
  throw new CommandError(
    `${what} is not what it must be`,
    `got ${JSON.stringify(got)}, expected ${JSON.stringify(wanted)}`,
    "This is a defect of Mitos or of the engine: run `mitos doctor` and report both outputs.",
  );
}
