import path from "node:path";
import { type ExecuteStep, execute, fdSets, type VmmStep } from "./vmm-steps.ts";

/**
 * The node that the machine's device is of: over whatever is the uppermost overlay just now. A name of its own, since the command line that names it
 * is written before any disk is chosen.
 */
const frontNode = "disk";
export const placeholderNode = "disk-none";

/**
 * Arguments of the VMM: a device with nothing behind it yet but zeros, for `attachDisk`. QEMU takes files only when its machine is complete, so that
 * the disk cannot be left out until then. The machine must not run before it has one: `-S`, or `-incoming`.
 *
 * What a running machine is told when the host has no room or its disk fails: an error, as from any disk. Its VMM would stop for the first one.
 */
export function placeholderArgs(diskBytes: number): string[] {
  const nodes = [{ driver: "null-co", "node-name": placeholderNode, size: diskBytes, "read-zeroes": true }, frontOver(placeholderNode)];
  return [
    ...nodes.flatMap((node) => ["-blockdev", JSON.stringify(node)]),
    "-device",
    `virtio-blk-device,drive=${frontNode},werror=report,rerror=report`,
  ];
}

/** The name of a fork's state: frozen from then on, for children and for the machine itself. */
export interface DiskSnapshot {
  /** While the machine runs, so that it does not stand still for them. */
  readonly before: readonly VmmStep[];
  /** Between `stop` and `cont`. Changes no memory. */
  readonly whileStopped: readonly ExecuteStep[];
  /** When it runs again: the VMM keeps no way to write to what is frozen. */
  readonly afterwards: readonly VmmStep[];
  /** To be run alone when `before` or something else failed and `whileStopped` did not run. Where nothing is to be undone, its steps fail: harmless. */
  readonly undo: readonly VmmStep[];
}

/**
 * One set serves for all files that are ever written to, since it is empty again before the next one comes into it. It has to be the same: the VMM
 * opens such a file anew when it is frozen, from the set from which it had it.
 */
const forgetFds = forget(fdSets.disk);
const forgetNextDeviceState = forget(fdSets.nextDeviceState);
const forgetPlaceholder = execute("blockdev-del", { "node-name": placeholderNode });

/** Not for waiting: nothing survives the VMM that its file does not have by a plain write, and snapshots are synced by `Disks.seal`. */
const written = { discard: "unmap", cache: { "no-flush": true } } as const;

/** What a VMM has open before it is known which disk it gets. */
export interface OpenedAhead {
  /** Files that nobody writes to any more, lowest first, of which the disk is likely to be. */
  readonly frozen: readonly string[];
  /** Path of the loose overlay that the machine will write to. */
  readonly overlay: string;
}

export interface DiskAttachment {
  readonly steps: readonly VmmStep[];
  /** When it runs: open nodes keep their files, and without its set nothing in the VMM opens one again. */
  readonly afterwards: readonly VmmStep[];
}

/**
 * Gives a machine its disk instead of the placeholder: a node for each file of a chain, the front node over the uppermost, the only one that is
 * written to. For a machine that has not started yet (`-S`), or that waits for its state (`-incoming defer`).
 *
 * @param chain - paths as of `Disk.chain`, lowest first
 */
export function attachDisk(chain: readonly string[]): DiskAttachment {
  const files = chain.map((file, index) => {
    const isTop = index > 0 && index === chain.length - 1;
    return { file, isTop, set: isTop ? fdSets.disk : fdSets.chain + index };
  });
  return {
    // Each by itself, so that each can be taken out by itself when the chain is collapsed.
    steps: [
      ...files.flatMap(({ file, set, isTop }) => openFile(chain, file, { set, readOnly: !isTop })),
      ...stepOver(chain.at(-1) as string),
    ],
    afterwards: [forgetPlaceholder, ...files.map(({ set }) => forget(set))],
  };
}

/** All of it that can be done before the disk is known, in a machine that waits for its state. `completeDisk` is the rest. */
export function openAhead({ frozen, overlay }: OpenedAhead): readonly VmmStep[] {
  return [
    ...frozen.flatMap((file, index) => {
      const set = fdSets.chain + index;
      return [...openFile(frozen, file, { set, readOnly: true }), forget(set)];
    }),
    ...openLoose(overlay),
    ...stepOver(overlay),
    forgetPlaceholder,
  ];
}

/** What `openAhead` has left of `attachDisk`: for the disk that the overlay was placed as. */
export function completeDisk(chain: readonly string[], { frozen, overlay }: OpenedAhead): DiskAttachment {
  const below = chain.slice(0, -1);
  const common = below.findIndex((file, index) => file !== frozen[index]);
  const parting = common < 0 ? below.length : common;
  const missing = below.slice(parting).map((file, index) => ({ file, set: fdSets.chain + parting + index }));
  return {
    steps: [
      // Of another disk than this one.
      ...frozen
        .slice(parting)
        .toReversed()
        .map((file) => execute("blockdev-del", { "node-name": nodeOf(file) })),
      ...missing.flatMap(({ file, set }) => openFile(chain, file, { set, readOnly: true })),
      execute("blockdev-snapshot", { node: nodeOf(below.at(-1) as string), overlay: nodeOf(overlay) }),
    ],
    afterwards: missing.map(({ set }) => forget(set)),
  };
}

function openLoose(overlay: string): readonly VmmStep[] {
  return [
    { add_fd: { set: fdSets.disk, path: overlay, access: "read_write" } },
    execute("blockdev-add", overlayNode(overlay, fdSets.disk, { below: null, readOnly: false })),
    forgetFds,
  ];
}

/** Makes the device one of this file. */
function stepOver(file: string): VmmStep[] {
  return [execute("blockdev-reopen", { options: [frontOver(nodeOf(file))] })];
}

function openFile(chain: readonly string[], file: string, { set, readOnly }: { set: number; readOnly: boolean }): VmmStep[] {
  const below = chain[chain.indexOf(file) - 1];
  return [
    { add_fd: { set, path: file, access: readOnly ? "read" : "read_write" } },
    execute("blockdev-add", below ? overlayNode(file, set, { below: nodeOf(below), readOnly }) : rawNode(file, set)),
  ];
}

/** Paths, of a machine: what it writes to, the overlay over that in which it goes on after its next fork, and where that fork saves the state of its devices. */
export interface Succession {
  readonly current: string;
  readonly next: string;
  /** Made new. Opened by the shim: the monitor sees no folder of the host. */
  readonly deviceState: string;
}

/** What of `snapshotDisk` can be done long before, while the machine goes on writing. */
export function openNext({ current, next, deviceState }: Succession): readonly VmmStep[] {
  return [
    ...openLoose(next),
    { add_fd: { set: fdSets.nextDeviceState, path: deviceState, access: "create_write" } },
    // The VMM opens the frozen one anew, read-only. Where it cannot, it silently keeps it open for writing.
    { add_fd: { set: fdSets.disk, path: current, access: "read" } },
  ];
}

/**
 * Freezes what a machine has written so far and lets it go on in the next overlay.
 *
 * @param isOpen - `openNext` was done
 */
export function snapshotDisk({ isOpen = false, ...succession }: Succession & { readonly isOpen?: boolean }): DiskSnapshot {
  const { current, next } = succession;
  return {
    before: isOpen ? [] : openNext(succession),
    whileStopped: [execute("blockdev-snapshot", { node: nodeOf(current), overlay: nodeOf(next) })],
    afterwards: [forgetFds, forgetNextDeviceState],
    undo: [
      { ...execute("blockdev-del", { "node-name": nodeOf(next) }), always: true },
      { ...forgetFds, always: true },
      { ...forgetNextDeviceState, always: true },
    ],
  };
}

/** What a monitor counts of a device's node, and of the one below it. */
interface Counts {
  readonly "node-name"?: string;
  readonly parent?: Counts;
}

/**
 * For `topDiskOf`. Not while a collapse is under way. What it counts is not wanted: it is the command by which QEMU 10.0 says which node lies below
 * which.
 */
export const askForTopDisk: VmmStep = execute("query-blockstats");

/** The id of the disk that a machine writes to; undefined while it has none. Only its VMM knows, when a fork ended half-way. */
export function topDiskOf(result: unknown): string | undefined {
  const front = (result as readonly Counts[]).find((counts) => counts["node-name"] === frontNode);
  // QEMU's word for the node that a node reads and writes.
  const top = front?.parent?.["node-name"];
  return top?.startsWith(nodePrefix) && top !== placeholderNode ? top.slice(nodePrefix.length) : undefined;
}

function frontOver(node: string) {
  return { driver: "raw", "node-name": frontNode, file: node, ...written };
}

/** Of a file of a chain: its name without what follows the first dot tells it apart. */
export function nodeOf(file: string): string {
  return `${nodePrefix}${nameOf(file)}`;
}

export const nodePrefix = "disk-";

/*
 * QEMU reads what it is told byte by byte, at some microseconds each, and these are what a fork waits for: nothing is said that holds anyway, and of a file that
 * is only read nothing about how it would be written. Whether a file is read-only comes from the node above, also when that becomes so.
 */
function rawNode(file: string, set: number) {
  return { driver: "raw", "node-name": nodeOf(file), "read-only": true, file: { driver: "file", filename: fileOf(set) } };
}

/** @param below - told, so that nothing opens what the overlay's header names: the machine's VMM can write there */
function overlayNode(file: string, set: number, { below, readOnly }: { below: string | null; readOnly: boolean }) {
  const node = { driver: "qcow2", "node-name": nodeOf(file), backing: below };
  const own = { driver: "file", filename: fileOf(set) };
  return readOnly ? { ...node, "read-only": true, file: own } : { ...node, ...written, file: { ...own, ...written } };
}

function fileOf(set: number): string {
  return `/dev/fdset/${set}`;
}

function forget(set: number): VmmStep {
  return execute("remove-fd", { "fdset-id": set });
}

function nameOf(file: string): string {
  return path.basename(file).split(".", 1)[0] as string;
}
