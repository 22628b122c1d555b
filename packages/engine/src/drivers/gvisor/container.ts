import { spawn } from "node:child_process";
import { mkdir, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { connectShim, type JsonObject, type ShimConnection } from "../../link/transport.ts";
import { removeCgroup } from "./cgroup.ts";
import type { Host } from "./host.ts";
import { type Layout, machineDir, makeFolders, newContainerId, scratchOf } from "./layout.ts";
import { killContainer, processGone } from "./processes.ts";
import { type ContainerShape, ociSpec } from "./spec.ts";

const shimReadyTimeoutMs = 10_000;
const createTimeoutMs = 30_000;
const shimReadyBytesMax = 16 * 1024;

/** A gVisor container that runs nothing yet, and the shim that keeps it. It becomes a machine by `start` or `restore`. */
export interface Container {
  readonly id: string;
  readonly dir: string;
  readonly shape: ContainerShape;
  readonly sentryPid: number;
  readonly shimPid: number;
  /** Carries the machine's frames. */
  readonly link: ShimConnection;
  /** Requests to the shim and its events, which must get through whatever back-pressure the link is under. */
  readonly control: ShimConnection;
}

/**
 * Until the shim is told to `watch` a machine, all of this goes away with the connection: a server that dies in between leaves nothing.
 * @throws MitosError; nothing is left then
 */
export async function createContainer(host: Host, shape: ContainerShape): Promise<Container> {
  const id = newContainerId();
  const dir = machineDir(host.layout, id);
  await makeFolders(host.layout);
  await mkdir(dir, { mode: 0o700 });
  const connections: ShimConnection[] = [];
  try {
    await Promise.all([
      writeFile(path.join(dir, "config.json"), JSON.stringify(ociSpec(id, shape, host.cgroups))),
      writeFile(path.join(dir, "container.json"), JSON.stringify(shape)),
    ]);
    await startShim(host, dir);
    const { link, control } = await connectBoth(dir, connections);
    const pidFile = sentryPidFile(dir);
    const scratchDir = shape.scratchOnDisk && scratchOf(host.layout, id);
    if (scratchDir) await mkdir(scratchDir, { recursive: true, mode: 0o700 });
    const ends = control.request("on_end", { commands: [host.runsc.remove(id)] });
    const created = runCommand(
      control,
      "create a container",
      host.runsc.create(dir, pidFile, id, scratchDir),
      createTimeoutMs,
      "link",
    ).catch(async (reason) => {
      throw new MitosError("internal", {
        cause: `could not create a container: ${await lastLineOf(path.join(dir, "machine.log"))}`,
        reason,
      });
    });
    await Promise.all([ends, created]);
    const [sentryPid, shimPid] = await Promise.all([readPid(pidFile), readPid(path.join(dir, "shim.pid"))]);
    return { id, dir, shape, sentryPid, shimPid, link, control };
  } catch (error) {
    for (const connection of connections) connection.close();
    await killContainer(host.layout, id);
    await removeTraces(host, id);
    throw error;
  }
}

/** The container of a shim that an earlier server started. */
export async function openContainer(layout: Layout, id: string): Promise<Container> {
  const dir = machineDir(layout, id);
  const connections: ShimConnection[] = [];
  try {
    const { link, control } = await connectBoth(dir, connections);
    const [shape, sentryPid, shimPid] = await Promise.all([
      readFile(path.join(dir, "container.json"), "utf8").then((text) => JSON.parse(text) as ContainerShape),
      readPid(sentryPidFile(dir)),
      readPid(path.join(dir, "shim.pid")),
    ]);
    return { id, dir, shape, sentryPid, shimPid, link, control };
  } catch (error) {
    for (const connection of connections) connection.close();
    throw error;
  }
}

/** Ends a container that has not become a machine. */
export async function discardContainer(host: Host, container: Container): Promise<void> {
  await container.control.request("end", { reason: "discarded" }).catch(() => undefined);
  container.link.close();
  container.control.close();
  await processGone(container.shimPid).catch(() => undefined);
  await killContainer(host.layout, container.id);
  await removeTraces(host, container.id);
}

async function connectBoth(dir: string, connections: ShimConnection[]): Promise<{ link: ShimConnection; control: ShimConnection }> {
  const [link, control] = await Promise.all(
    ["shim.sock", "control.sock"].map(async (name) => {
      const connection = await connectShim(path.join(dir, name));
      connections.push(connection);
      return connection;
    }),
  );
  return { link: link!, control: control! };
}

export function sentryPidFile(dir: string): string {
  return path.join(dir, "sentry.pid");
}

async function startShim(host: Host, dir: string): Promise<void> {
  const args = ["shim", "--dir", dir, ...(host.userNamespace ? ["--user-namespace"] : [])];
  // runsc needs nothing of our environment, and a machine's host processes should not carry our secrets in theirs.
  const child = spawn(host.guestPath, args, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    cwd: "/",
  });
  try {
    await new Promise<void>((resolve, reject) => {
      let out = "";
      let errors = "";
      const timer = setTimeout(() => reject(failed(`it was not ready after ${shimReadyTimeoutMs} ms`)), shimReadyTimeoutMs);
      const failed = (text: string) => {
        clearTimeout(timer);
        return new MitosError("internal", { cause: `a machine's shim did not start: ${text.slice(0, 1024)}` });
      };
      child.stdout.on("data", (chunk: Buffer) => {
        if (out.length < shimReadyBytesMax) out += chunk.toString("latin1");
        if (!out.startsWith("ready\n")) return;
        clearTimeout(timer);
        resolve();
      });
      child.stderr.on("data", (chunk: Buffer) => {
        if (errors.length < shimReadyBytesMax) errors += chunk.toString("utf8");
      });
      child.on("error", (error) => reject(failed(error.message)));
      // The shim holds stdout until it is ready, so the end of both without `ready` is a failure.
      child.on("close", (code) => reject(failed(errors.trim() || `it ended with ${code}`)));
    });
  } finally {
    child.stdout.destroy();
    child.stderr.destroy();
  }
}

/** Runs a host command in the shim's surroundings. @throws MitosError with the command's own last words */
export async function runCommand(
  control: ShimConnection,
  doing: string,
  argv: readonly string[],
  timeoutMs: number,
  stdio: "null" | "link" = "null",
): Promise<void> {
  const reply = await control.request("run", { argv, stdio, timeout_ms: timeoutMs });
  if (reply.exit_code === 0 && reply.timed_out !== true) return;
  throw new MitosError("internal", { cause: `could not ${doing}: ${lastWords(reply)}` });
}

function lastWords(reply: JsonObject): string {
  if (reply.timed_out === true) return "it took too long";
  const text = `${String(reply.stdout ?? "")}\n${String(reply.stderr ?? "")}`.trim();
  const last = text.split("\n").at(-1)?.slice(-1024);
  return last || `exit code ${String(reply.exit_code)}, signal ${String(reply.signal)}`;
}

/** With `link`, what a command says is in the machine's log. */
async function lastLineOf(log: string): Promise<string> {
  const text = await readFile(log, "utf8").catch(() => "");
  return text.trim().split("\n").at(-1)?.slice(-1024) || "runsc did not say why";
}

async function readPid(file: string): Promise<number> {
  const pid = Number((await readFile(file, "utf8")).trim());
  if (!Number.isInteger(pid) || pid <= 1) throw new MitosError("internal", { cause: `${file} holds no process id` });
  return pid;
}

/** Removes everything of a container whose processes have ended. Idempotent. */
export async function removeTraces(host: Host, id: string): Promise<void> {
  if (host.cgroups) await removeCgroup(host.cgroups, id);
  for (const name of await readdir(host.layout.runscRoot).catch(() => [])) {
    if (containerOfState(name) === id) await rm(path.join(host.layout.runscRoot, name), { recursive: true, force: true });
  }
  await Promise.all([scratchOf(host.layout, id), machineDir(host.layout, id)].map((dir) => rm(dir, { recursive: true, force: true })));
}

/** Files of runsc's own state are named `<id>_sandbox:<id>.state`, `….lock` and `runsc-<id>.sock`. */
export function containerOfState(name: string): string | undefined {
  return /^(?:runsc-)?([0-9a-f]{12})[_.]/.exec(name)?.[1];
}

/** How the machine ended, when its shim has said so. */
export async function readExit(dir: string): Promise<JsonObject | undefined> {
  const file = await open(path.join(dir, "exit.json")).catch(() => undefined);
  if (!file) return undefined;
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(16 * 1024));
    const value: unknown = JSON.parse(buffer.toString("utf8", 0, bytesRead));
    return typeof value === "object" && value !== null ? (value as JsonObject) : undefined;
  } catch {
    return undefined;
  } finally {
    await file.close();
  }
}
