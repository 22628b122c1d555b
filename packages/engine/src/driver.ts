import type { Layer } from "./layers/layer.ts";

/**
 * What the engine asks of one kind of machine. A driver knows how a machine is started, frozen, saved and restored; exec, files, terminals,
 * code and tunnels are the link's, and the same for all drivers.
 */

export type Isolation = "microvm-kvm" | "microvm-tcg" | "microvm-firecracker" | "gvisor" | "mock";

export interface MachineResources {
  readonly vcpuCount: number;
  readonly memSizeMiB: number;
  readonly processesMax: number;
}

/**
 * How many processes and threads programs really get: a process costs a machine half a MiB to one even if it only sleeps, so that with more
 * of them than MiB of memory a fork bomb would end its machine for want of memory instead of being told no.
 */
export function programsMax({ processesMax, memSizeMiB }: MachineResources): number {
  return Math.min(processesMax, memSizeMiB);
}

/** Where the root file system of a machine comes from. */
export type RootSource =
  | { readonly kind: "host" }
  /** Lowest first. They stay where they are as long as the machine, and every snapshot of it, is there. */
  | { readonly kind: "layers"; readonly layers: readonly Layer[] };

/** An owner and mode that a file of a root made of layers should have and could not be given on the host. */
export interface OwnerEntry {
  /** Absolute, in the machine. */
  readonly path: string;
  readonly uid: number;
  readonly gid: number;
  /** The lowest twelve bits. */
  readonly mode: number;
}

/** A machine that goes on from a snapshot; its root is the snapshot's. */
export interface RestoreSpec {
  /** Unique on this data directory for ever, of one fixed length (runsc accepts unique prefixes of ids). */
  readonly machineId: string;
  readonly resources: MachineResources;
  readonly hostName: string;
}

export interface MachineSpec extends RestoreSpec {
  readonly root: RootSource;
  /**
   * Where what its programs write is kept. `disk`: in a file of the data directory, so that it may be more than the machine has memory; gone with
   * the machine, which cannot be saved. Default `memory`. A driver that has only one of them takes that.
   */
  readonly scratch?: "memory" | "disk" | undefined;
}

/** A saved machine: an opaque folder that knows what it needs to be restored. */
export interface Snapshot {
  readonly dir: string;
  /** What lies in the folder, on the disk. */
  readonly bytes: number;
  /** What it stands on beside, and shares with machines and other snapshots (memory and disk of virtual machines), on the disk. Absent = nothing. */
  readonly standsOnBytes?: number | undefined;
  /** Everything that must still hold at restore, checked by the driver: builds, protocol, CPU, host files. */
  readonly requirements: SnapshotRequirements;
  /** What lies in the folder, by name. Absent in records of earlier versions. */
  readonly files?: Readonly<Record<string, SealedFile>> | undefined;
}

/** What would be free without it, if nothing else stood on the same, in bytes. */
export function storedBytes({ bytes, standsOnBytes = 0 }: Snapshot): number {
  return bytes + standsOnBytes;
}

/** A file of a snapshot as it was when it was finished. */
export interface SealedFile {
  readonly bytes: number;
  /** Of the content; for what is durable. */
  readonly crc32?: number | undefined;
  /** For what is not. */
  readonly mtimeNs?: string | undefined;
}

export interface SnapshotRequirements {
  readonly driver: string;
  /** Name and version of runsc or QEMU. */
  readonly engineBuild: string;
  readonly agentHash: string;
  readonly protocolVersion: number;
  readonly cpu: string;
  /** path → size:mtime:inode of the host files that the machine had open or mapped. */
  readonly hostFiles: Readonly<Record<string, string>>;
}

export interface MachineExit {
  readonly reason: "exited" | "killed" | "oom_killed" | "deadline" | "terminated" | "lost";
  readonly detail: string;
  readonly atUnixMs: number;
}

/** What the processes of one machine use on the host. */
export interface MachineMetering {
  /** What is this machine's alone: its own memory, and the private memory of the processes that run it. */
  readonly memoryBytes: number;
  /** Pages of host files that it has mapped: in memory once, however many machines map them. 0 unless asked for. */
  readonly sharedBytes: number;
  readonly cpuMs: number;
}

export interface Metering extends MachineMetering {
  /** Sent by programs of the sandbox through the egress gate, since this server took the sandbox up. */
  readonly egressBytes: number;
  /** What came back. */
  readonly egressReceivedBytes: number;
}

/** The frames of one machine, whole, in order. */
export interface FrameTransport {
  /** Resolves when more may be written. @param pieces - of whole frames, one after the other, written together; they may not change any more */
  send(...pieces: Uint8Array[]): Promise<void>;
  /** Called with each complete frame (header and payload). Set once, before the first frame is read. */
  onFrame(listener: (type: number, flags: number, channel: number, payload: Uint8Array) => void): void;
  /** Called once, when the stream has ended for whatever reason. */
  onClose(listener: (error: Error | undefined) => void): void;
  /** Stops and restarts reading, for back-pressure. */
  pause(): void;
  resume(): void;
}

export interface Machine {
  readonly machineId: string;
  readonly transport: FrameTransport;
  /** Resolves when the machine has ended and nothing of it is left on the host. Never rejects. */
  readonly exited: Promise<MachineExit>;
  /** Ends the machine whether a server lives or not. Null = no deadline. */
  setDeadline(unixMs: number | null): Promise<void>;
  /**
   * Stops every process of the machine on the host (0 % CPU) until `thaw`, or until another server takes it up: nobody has written it down.
   * @throws unavailable when the driver can only do it while nothing runs in the machine, and something does all the time
   */
  freeze(): Promise<void>;
  thaw(): Promise<void>;
  /** @param shared - also what it shares: that takes its shim some milliseconds, in which its link waits */
  meter(options?: { shared: boolean }): Promise<MachineMetering>;
  /**
   * The end of its console: what its kernel and its agent say beside the link, and what the programs that run it say. At most
   * `limits.consoleBytesMax`; as hostile as the machine.
   * @throws unavailable when it has just ended
   */
  console(): Promise<Uint8Array>;
  /**
   * SIGKILL, clean up, resolve when nothing is left. Idempotent. Never rejects, since most of those who end a machine have nobody to tell: what the
   * host does not let go of is logged, and left to the next call or the next server's `sweep`.
   */
  end(reason: string): Promise<void>;
}

export interface ProbeResult {
  readonly usable: boolean;
  readonly isolation: Isolation;
  /** One line: why, or why not. */
  readonly detail: string;
  /** What to install or change; empty when all is well. */
  readonly remedies: readonly string[];
  /** What is weaker than it could be on this machine (for example: no cgroups without root). */
  readonly weaknesses: readonly string[];
}

/** How many machines found a container made ahead, since the driver was opened. */
export interface ReadyStarts {
  readonly hits: number;
  readonly misses: number;
}

/** The quiet of a machine's programs and link, which lasts only as long as the driver needs it. */
export interface SnapshotQuiet {
  /** When this resolves they stand still. What can be made ready before that has been. Does nothing while they do. */
  begin(): Promise<void>;
  /** What the snapshot is made of has been copied: they go on, while it is still being put in order. */
  end(): Promise<void>;
}

export interface SnapshotOptions {
  readonly leaveRunning: boolean;
  /** On disk and synced, for pause; otherwise wherever it is fastest. */
  readonly durable: boolean;
  /** Whoever asks for a snapshot ends the quiet of one that failed. Absent: the machine is quiesced already, and stays so. */
  readonly quiet?: SnapshotQuiet | undefined;
}

export interface Driver {
  readonly name: "gvisor" | "microvm" | "mock";
  readonly isolation: Isolation;
  /**
   * Starts a machine from its root file system; its agent is about to read the link. A root of layers is put together when it is first asked for,
   * once, however many ask at the same time.
   * @throws quota_exceeded when the disk is full
   */
  boot(spec: MachineSpec): Promise<Machine>;
  /**
   * What the agent of a machine with this root has to be told by `setOwners` right after its first ADOPT: owners that the host could not give to
   * files, for want of privilege. Empty where it could.
   */
  ownersOf(root: RootSource): Promise<readonly OwnerEntry[]>;
  /**
   * Saves a quiesced machine into `dir` (made by the driver beside it and renamed into place: a folder that exists is whole).
   * The machine stands still meanwhile and, with `leaveRunning`, runs on afterwards; otherwise it has ended when this resolves.
   */
  snapshot(machine: Machine, dir: string, options: SnapshotOptions): Promise<Snapshot>;
  /**
   * How much of a snapshot on tmpfs the machine may write before it is over its memory limit, in bytes: what its own processes write there counts as
   * their memory for as long as it lies there. Absent where others write it.
   */
  snapshotRoom?(machine: Machine): number;
  /** @throws snapshot_incompatible with what is missing */
  checkSnapshot(snapshot: Snapshot): Promise<void>;
  /** A machine that continues from the snapshot; its agent is quiesced and waits for HELLO and ADOPT. */
  restore(snapshot: Snapshot, spec: RestoreSpec): Promise<Machine>;
  /**
   * Makes ready what `restore` would otherwise do while the user waits (containers created ahead), for machines with the root and the resources
   * of this one, which may have ended. Best effort, returns at once.
   */
  prepare(like: Machine, count: number): void;
  /** Absent where nothing is made ahead. */
  readonly readyStarts?: ReadyStarts | undefined;
  /** A machine of an earlier server: still alive and awake, whatever that has left it in the middle of; or how it ended. */
  reattach(machineId: string): Promise<Machine | MachineExit>;
  /** Ends every machine that is not in `keep`, and removes every leftover that neither those nor the `snapshots` need. */
  sweep(keep: ReadonlySet<string>, snapshots?: readonly Snapshot[]): Promise<void>;
  /**
   * Removes roots made of layers that no machine has and that are not in the list: those of templates that are there or being made, and of
   * snapshots. Their layers stay where they are.
   */
  collectRoots(keep: { readonly roots: readonly RootSource[]; readonly snapshots: readonly Snapshot[] }): Promise<void>;
  close(): Promise<void>;
}
