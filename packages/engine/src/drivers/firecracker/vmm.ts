import { chmod, mkdir, readFile, rm } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { MachineResources } from "../../driver.ts";
import type { ShimConnection } from "../../link/transport.ts";
import { removeCgroup } from "../host/cgroup.ts";
import { machineDir, makeHostFolders, newKeeperId } from "../host/layout.ts";
import type { Keeper } from "../host/machine.ts";
import { processGone } from "../host/processes.ts";
import { connectBoth, readPid, runCommand, startShim } from "../host/shim.ts";
import { makeCgroup } from "../microvm/cgroup.ts";
import { FirecrackerApi, socketReady } from "./api.ts";
import { cloneFile } from "./disk.ts";
import type { Host } from "./host.ts";
import { type Jail, linkJail, type Place, placeOf, removePlace } from "./place.ts";
import { killVmm } from "./processes.ts";
import { descriptionName, writeDescription } from "./uids.ts";

const launchTimeoutMs = 30_000;
const apiTimeoutMs = 5_000;
/** The jailer copies the program first. */
const jailedApiTimeoutMs = 10_000;

/** What a VMM keeps for its whole life. */
export interface VmmShape {
  readonly resources: MachineResources;
  /** Of its read-only root image. */
  readonly rootKey: string;
  readonly jail: Jail | null;
}

/** A Firecracker process that takes calls and runs no guest yet, and the shim that keeps it. */
export interface Vmm extends Keeper {
  readonly shape: VmmShape;
  readonly place: Place;
  readonly api: FirecrackerApi;
  readonly pid: number;
}

/**
 * Until the shim is told to `watch` it, all of this goes away with the connection: a server that dies in between leaves nothing.
 *
 * @param disk - what the machine's own disk is a copy of
 * @throws quota_exceeded, MitosError; nothing is left then
 */
export async function createVmm(host: Host, shape: VmmShape, files: { image: string; disk: string }): Promise<Vmm> {
  const id = newKeeperId();
  const dir = machineDir(host.layout, id);
  await makeHostFolders(host.layout);
  await mkdir(dir, { mode: 0o700 });
  const connections: ShimConnection[] = [];
  try {
    await writeDescription(dir, shape);
    const cgroupProcs = host.cgroups ? await makeCgroup(host.cgroups, id, shape.resources) : [];
    const place = placeOf(host, id, shape.jail, cgroupProcs);
    await startShim(host, dir);
    const { link, control } = await connectBoth(dir, connections);
    await launch(control, place, dir);
    if (shape.jail) await linkJail(host, id);
    const [pid, shimPid] = await Promise.all([readPid(place.pidFile), readPid(path.join(dir, "shim.pid"))]);
    const hasEnded = () =>
      processGone(pid, 0).then(
        () => true,
        () => false,
      );
    await socketReady(place.api, shape.jail ? jailedApiTimeoutMs : apiTimeoutMs, hasEnded);
    await cloneFile(files.disk, place.disk);
    await chmod(place.disk, 0o600);
    await place.giveDrives(files.image);
    return { id, dir, shape, place, api: new FirecrackerApi(place.api), pid, shimPid, link, control };
  } catch (error) {
    for (const connection of connections) connection.close();
    await killVmm(host.layout, id);
    await removeTraces(host, id);
    throw error;
  }
}

async function launch(control: ShimConnection, { argv }: Place, dir: string): Promise<void> {
  try {
    await runCommand(control, "start Firecracker", argv, launchTimeoutMs, "link");
  } catch (reason) {
    // With `link`, what a command says is in the machine's log.
    const said = (await readLog(dir)).trim().split("\n").at(-1)?.slice(-1024);
    throw new MitosError("internal", { cause: `could not start Firecracker: ${said || "it did not say why"}`, reason });
  }
}

/** The VMM of a shim that an earlier server started. */
export async function openVmm(host: Host, id: string): Promise<Vmm> {
  const dir = machineDir(host.layout, id);
  const connections: ShimConnection[] = [];
  try {
    const { link, control } = await connectBoth(dir, connections);
    const shape = JSON.parse(await readFile(path.join(dir, descriptionName), "utf8")) as VmmShape;
    const place = placeOf(host, id, shape.jail, []);
    const [pid, shimPid] = await Promise.all([readPid(place.pidFile), readPid(path.join(dir, "shim.pid"))]);
    return { id, dir, shape, place, api: new FirecrackerApi(place.api), pid, shimPid, link, control };
  } catch (error) {
    for (const connection of connections) connection.close();
    throw error;
  }
}

/** Removes everything of a VMM whose processes have ended. Idempotent. */
export async function removeTraces(host: Host, id: string): Promise<void> {
  if (host.cgroups) await removeCgroup(host.cgroups, id);
  await removePlace(host, id);
  await rm(machineDir(host.layout, id), { recursive: true, force: true });
}

/** What the guest and its VMM have written last: at most 256 KiB are kept of it. */
async function readLog(dir: string): Promise<string> {
  return readFile(path.join(dir, "machine.log"), "utf8").catch(() => "");
}
