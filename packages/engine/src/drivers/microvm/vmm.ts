import { mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { JsonObject, ShimConnection } from "../../link/transport.ts";
import { removeCgroup } from "../host/cgroup.ts";
import { machineDir, makeHostFolders, newKeeperId } from "../host/layout.ts";
import type { Keeper } from "../host/machine.ts";
import { processGone } from "../host/processes.ts";
import { connectBoth, readPid, startShim } from "../host/shim.ts";
import type { BaseUse } from "./bases.ts";
import { makeCgroup } from "./cgroup.ts";
import { files, type MachineShape, qemuArgs } from "./command-line.ts";
import type { LooseOverlay, NewDisk } from "./disks.ts";
import type { Host } from "./host.ts";
import type { ImageUse } from "./images.ts";
import { killKeeper } from "./processes.ts";
import type { VmmStep } from "./vmm-steps.ts";

const startTimeoutMs = 20_000;
const saveTimeoutBaseMs = 30_000;
const saveTimeoutPerGiBMs = 60_000;
const pidFile = "vmm.pid";
const recordFile = "machine.json";
/** Nobody's ids on any distribution; each machine has one of its own as far as they go. */
const firstUid = 64_000;
const uids = 1_000;

/** A monitor (QEMU) that runs nothing yet, and the shim that keeps it. */
export interface Vmm extends Keeper {
  readonly shape: MachineShape;
  readonly pid: number;
  /** Id of the uppermost of its disk's files; undefined while it has none. Changes at each fork. */
  disk: string | undefined;
  /** It waits for a state, with these files open: its disk is likely to be of the frozen ones. */
  opened: { readonly frozen: readonly string[]; readonly overlay: LooseOverlay } | undefined;
  /** Of a machine that was forked before: what it will write to after the next fork, over what it writes to now; open already. */
  spare: NewDisk | undefined;
  /** What of the data directory it stands on. */
  readonly uses: { readonly image: ImageUse; readonly base: BaseUse };
}

/** What a later server has to know of a machine. */
interface MachineRecord {
  readonly version: 1;
  readonly shape: MachineShape;
  readonly disk: string;
}

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** As whom the monitor of a machine runs; undefined = as root of a user namespace, which is nobody but this user outside. */
export function ownerOf(host: Host, keeperId: string): Owner | undefined {
  if (host.userNamespace) return undefined;
  const id = firstUid + (Number.parseInt(keeperId, 16) % uids);
  return { uid: id, gid: id };
}

/**
 * Until the shim is told to `watch` a machine, all of this goes away with the connection: a server that dies in between leaves nothing.
 *
 * @param uses - become the machine's, also when it does not start
 * @throws MitosError; nothing is left then
 */
export async function startVmm(host: Host, shape: MachineShape, uses: Vmm["uses"], id: string = newKeeperId()): Promise<Vmm> {
  const dir = machineDir(host.layout, id);
  const connections: ShimConnection[] = [];
  try {
    await makeHostFolders(host.layout);
    await mkdir(dir, { mode: 0o700 });
    await startShim(host, dir);
    const { link, control } = await connectBoth(dir, connections);
    const cgroups = host.cgroups ? await makeCgroup(host.cgroups, id, shape.resources) : [];
    const reply = await control.request("run", {
      argv: [host.guestPath, "confine", JSON.stringify(await confinement(host, id, shape, uses, cgroups))],
      stdio: "vmm",
      timeout_ms: startTimeoutMs,
    });
    if (reply.exit_code !== 0) throw await refused(host, dir);
    const [pid, shimPid] = await Promise.all([readPid(path.join(dir, pidFile)), readPid(path.join(dir, "shim.pid"))]);
    return { id, dir, shape, pid, shimPid, link, control, disk: undefined, opened: undefined, spare: undefined, uses };
  } catch (error) {
    for (const connection of connections) connection.close();
    await killKeeper(host.layout, id);
    await removeTraces(host, id);
    releaseUses(uses);
    throw error;
  }
}

/** The machine of a shim that an earlier server started. @throws when it is not there any more, or was not complete */
export async function openVmm(host: Host, id: string): Promise<Vmm> {
  const dir = machineDir(host.layout, id);
  const connections: ShimConnection[] = [];
  const held: Disposable[] = [];
  try {
    const { link, control } = await connectBoth(dir, connections);
    const [{ shape, disk }, pid, shimPid] = await Promise.all([
      readRecord(dir),
      readPid(path.join(dir, pidFile)),
      readPid(path.join(dir, "shim.pid")),
    ]);
    const image = await host.images.useKnown(shape.image);
    held.push(image);
    const base = await host.bases.use(shape.base);
    held.push(base);
    return { id, dir, shape, pid, shimPid, link, control, disk, opened: undefined, spare: undefined, uses: { image, base } };
  } catch (error) {
    for (const connection of connections) connection.close();
    for (const use of held) use[Symbol.dispose]();
    throw error;
  }
}

/** Ends a monitor that has not become a machine. */
export async function discardVmm(host: Host, vmm: Vmm): Promise<void> {
  await vmm.control.request("end", { reason: "discarded" }).catch(() => undefined);
  vmm.link.close();
  vmm.control.close();
  await processGone(vmm.shimPid).catch(() => undefined);
  await killKeeper(host.layout, vmm.id);
  await removeTraces(host, vmm.id);
  release(vmm);
}

/** Removes everything of a machine on the host whose processes have ended. Idempotent. */
export async function removeTraces(host: Host, id: string): Promise<void> {
  if (host.cgroups) await removeCgroup(host.cgroups, id);
  await rm(machineDir(host.layout, id), { recursive: true, force: true });
}

/** Lets go of what of the data directory is held for a monitor that is gone, or that a later server takes over. */
export function release({ opened, spare, uses }: Vmm): void {
  opened?.overlay[Symbol.dispose]();
  spare?.[Symbol.dispose]();
  releaseUses(uses);
}

function releaseUses({ image, base }: Vmm["uses"]): void {
  image[Symbol.dispose]();
  base[Symbol.dispose]();
}

/** Of one that is a machine. */
export function requireDisk({ disk }: Vmm): string {
  if (disk === undefined) throw new Error("broken invariant: a machine without a disk");
  return disk;
}

/** For the server that comes after this one. */
export async function recordMachine(vmm: Vmm): Promise<void> {
  const { dir, shape } = vmm;
  const record: MachineRecord = { version: 1, shape, disk: requireDisk(vmm) };
  await writeFile(path.join(dir, recordFile), JSON.stringify(record), { mode: 0o600 });
}

async function readRecord(dir: string): Promise<MachineRecord> {
  const record = JSON.parse(await readFile(path.join(dir, recordFile), "utf8")) as MachineRecord;
  if (record.version !== 1) throw new Error(`${recordFile} is of another version`);
  return record;
}

/** To copy what a machine has in memory, on a slow disk. */
export function saveTimeoutMs({ shape }: Vmm): number {
  return saveTimeoutBaseMs + Math.ceil(shape.resources.memSizeMiB / 1024) * saveTimeoutPerGiBMs;
}

export interface Ran {
  /** By the places of their steps. */
  readonly results: readonly unknown[];
  /** From the return of `stop` to that of `cont`; undefined when they were not both among the steps. */
  readonly stoppedMs: number | undefined;
}

/**
 * Lets the shim do something with a machine's monitor.
 *
 * @param doing - what, for the error: "start a machine"
 * @throws MitosError with the monitor's own words
 */
export async function runSteps({ control }: Keeper, doing: string, steps: readonly VmmStep[], timeoutMs: number): Promise<Ran> {
  let reply: JsonObject;
  try {
    reply = await control.request("vmm", { steps, timeout_ms: timeoutMs });
  } catch (reason) {
    throw new MitosError("internal", {
      cause: `could not ${doing}: ${reason instanceof MitosError ? reason.detail.cause : String(reason)}`,
      reason,
    });
  }
  const { results, stopped_us: stoppedUs } = reply;
  return { results: Array.isArray(results) ? results : [], stoppedMs: typeof stoppedUs === "number" ? stoppedUs / 1000 : undefined };
}

/** The same for what has time. Nobody waits for it: what is asked of the monitor later comes after it. */
export function runInBackground(host: Host, vmm: Vmm, doing: string, steps: readonly VmmStep[], timeoutMs: number): void {
  runSteps(vmm, doing, steps, timeoutMs).catch((error: unknown) => {
    host.log.debug({ vmm: vmm.id, error: String(error) }, "a machine has ended, or keeps files open that it needs no more");
  });
}

/** Whether steps failed since what they waited for did not come in their time; in the shim's words. */
export function saysNoAnswer(error: unknown): boolean {
  return error instanceof MitosError && /no answer from the machine's monitor in the time given/.test(error.detail.cause ?? "");
}

/** Whether steps failed since the machine had ended; in the shim's words. */
export function saysEnded(error: unknown): boolean {
  return error instanceof MitosError && /the machine has ended/.test(error.detail.cause ?? "");
}

async function confinement(host: Host, id: string, shape: MachineShape, { image, base }: Vmm["uses"], cgroups: readonly string[]) {
  const { assets, accel, tscKhz } = host;
  const name = machineDir(host.layout, id);
  const { program } = assets.vmm;
  const argv = qemuArgs({ program, name, shape, memoryOffset: base.offset, accel, diskBytes: assets.emptyDisk.bytes, tscKhz });
  const owner = ownerOf(host, id);
  return {
    argv,
    pid_file: pidFile,
    // Who may use the device is decided by its group.
    ...(owner && accel === "kvm" ? { uid: owner.uid, gid: (await stat("/dev/kvm")).gid } : owner),
    cgroups,
    root: assets.vmm.root,
    devices: accel === "kvm" ? ["/dev/kvm"] : [],
    files: [
      { fd: files.memory, path: base.path, access: shape.boots ? "read_write" : "read" },
      { fd: files.image, path: image.path, access: "read" },
      ...(shape.boots
        ? [
            { fd: files.kernel, path: assets.kernel.path, access: "read" },
            { fd: files.initramfs, path: assets.initramfs.path, access: "read" },
          ]
        : []),
    ],
  };
}

async function refused(host: Host, dir: string): Promise<MitosError> {
  const log = await readFile(path.join(dir, "machine.log"), "utf8").catch(() => "");
  const cause = log.trim().split("\n").at(-1)?.slice(-1024) || "its launcher did not say why";
  host.log.warn({ dir, cause }, "the monitor of a machine did not start");
  return new MitosError("internal", { cause: `could not start ${host.assets.vmm.build}: ${cause}` });
}
