import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { ShimConnection } from "../../link/transport.ts";
import { allowBurst, removeCgroup } from "../host/cgroup.ts";
import { machineDir, newKeeperId } from "../host/layout.ts";
import { processGone } from "../host/processes.ts";
import { connectBoth, readPid, runCommand, type ShimConnections, startShim } from "../host/shim.ts";
import type { Host } from "./host.ts";
import { type Layout, makeFolders, scratchOf } from "./layout.ts";
import { killContainer } from "./processes.ts";
import { type ContainerShape, ociSpec } from "./spec.ts";

const createTimeoutMs = 30_000;

/** A gVisor container that runs nothing yet, and the shim that keeps it. It becomes a machine by `start` or `restore`. */
export interface Container extends ShimConnections {
  readonly id: string;
  readonly dir: string;
  readonly shape: ContainerShape;
  readonly sentryPid: number;
  readonly shimPid: number;
}

/**
 * Until the shim is told to `watch` a machine, all of this goes away with the connection: a server that dies in between leaves nothing.
 * @throws MitosError; nothing is left then
 */
export async function createContainer(host: Host, shape: ContainerShape): Promise<Container> {
  const id = newKeeperId();
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
    const [sentryPid, shimPid] = await Promise.all([
      readPid(pidFile),
      readPid(path.join(dir, "shim.pid")),
      host.cgroups && allowBurst(host.cgroups, id, shape.resources),
    ]);
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

export function sentryPidFile(dir: string): string {
  return path.join(dir, "sentry.pid");
}

/** With `link`, what a command says is in the machine's log. */
async function lastLineOf(log: string): Promise<string> {
  const text = await readFile(log, "utf8").catch(() => "");
  return text.trim().split("\n").at(-1)?.slice(-1024) || "runsc did not say why";
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
