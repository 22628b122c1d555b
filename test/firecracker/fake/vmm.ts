import { existsSync, readFileSync, rmSync, writeSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { type Action, type Body, Refused } from "./api.ts";
import type { Files } from "./files.ts";
import { Guest, memoryFits } from "./guest.ts";

interface Drive {
  readonly id: string;
  path: string;
  readonly readOnly: boolean;
  readonly root: boolean;
  file: number;
}

/** In the file of a snapshot's state: what Firecracker restores beside memory. Paths are kept as they were given. */
interface State {
  readonly bootArguments: string;
  readonly memSizeMiB: number;
  readonly drives: readonly Pick<Drive, "id" | "path" | "readOnly" | "root">[];
  readonly vsock: string | undefined;
}

const notBooted = "The requested operation is not supported before starting the microVM.";
const booted = "The requested operation is not supported after starting the microVM.";
const firstHostPort = 2 ** 30;

/** One VMM: what was configured, whether its guest runs, and what is refused in which state. */
export class Vmm {
  readonly #files: Files;
  /** Set by everything that configures the machine: a snapshot can only be loaded into a fresh process. */
  #configured = false;
  #bootArguments: string | undefined;
  #memSizeMiB = 128;
  #drives: Drive[] = [];
  #vsock: { path: string; server: Server } | undefined;
  #guest: Guest | undefined;
  #paused = false;
  #waiting: (() => void)[] = [];
  #hostPort = firstHostPort;

  constructor(files: Files) {
    this.#files = files;
  }

  /** @throws Refused; Fatal when the process ends with it */
  apply({ name, stage, body }: Action): void {
    if (stage === "preboot" && this.#guest) throw new Refused(booted);
    if (stage === "runtime" && !this.#guest) throw new Refused(notBooted);
    if (name !== "snapshot-load" && stage === "preboot") this.#configured = true;
    actions[name]!(this, body);
  }

  bootSource({ kernel_image_path: kernel, initrd_path: initrd, boot_args: bootArguments = "" }: Body): void {
    for (const file of [kernel, initrd]) if (file !== undefined) this.#files.close(this.#files.open(file as string, "read"));
    this.#bootArguments = bootArguments as string;
  }

  machineConfig({ mem_size_mib: memory, smt, vcpu_count: cpus }: Body): void {
    if (smt === true && cpus !== 1 && (cpus as number) % 2 === 1) throw new Refused("The vCPU number is invalid!");
    this.#memSizeMiB = memory as number;
  }

  addDrive({ drive_id: id, path_on_host: path, is_read_only: readOnly, is_root_device: root }: Body): void {
    const others = this.#drives.filter((each) => each.id !== id);
    if (root && others.some((each) => each.root)) throw new Refused("A root block device already exists!");
    this.#drives = [
      ...others,
      this.#openDrive({ id: id as string, path: path as string, readOnly: readOnly === true, root: root === true }),
    ];
  }

  updateDrive({ drive_id: id, path_on_host: path }: Body): void {
    const drive = this.#drives.find((each) => each.id === id);
    if (!drive) throw new Refused(`Invalid block device ID: ${String(id)}`);
    if (path === undefined) return;
    const { file } = this.#openDrive({ ...drive, path: path as string });
    this.#files.close(drive.file);
    Object.assign(drive, { path, file });
  }

  addVsock({ uds_path: path }: Body): void {
    this.#listen(path as string);
  }

  start(): void {
    if (this.#bootArguments === undefined) throw new Refused("Cannot start microvm without kernel configuration.");
    this.#guest = new Guest(this.#hardware(this.#bootArguments), undefined);
  }

  /** As often as one likes: the state is what counts. */
  setState({ state }: Body): void {
    this.#paused = state === "Paused";
    if (this.#paused) return;
    for (const goOn of this.#waiting.splice(0)) goOn();
  }

  createSnapshot({ snapshot_path: statePath, mem_file_path: memoryPath, snapshot_type: type = "Full" }: Body): void {
    if (!this.#paused) throw new Refused("Create snapshot error: save/restore of a running microVM is not allowed");
    if (type === "Diff") throw new Refused("Create snapshot error: diff snapshots need track_dirty_pages");
    const state: State = {
      bootArguments: this.#bootArguments ?? "",
      memSizeMiB: this.#memSizeMiB,
      drives: this.#drives.map(({ id, path, readOnly, root }) => ({ id, path, readOnly, root })),
      vsock: this.#vsock?.path,
    };
    const stateFile = this.#files.create(statePath as string);
    writeSync(stateFile, JSON.stringify(state));
    this.#files.close(stateFile);
    const memoryFile = this.#files.create(memoryPath as string);
    this.#guest!.save(memoryFile, this.#memSizeMiB * 1024 * 1024);
    this.#files.close(memoryFile);
    // Also in the machine that goes on: docs/snapshotting/snapshot-support.md § Vsock device reset.
    this.#guest!.resetConnections();
  }

  loadSnapshot({ snapshot_path: statePath, mem_file_path: memoryPath, mem_backend: backend, resume_vm: resume }: Body): void {
    if (memoryPath !== undefined && backend !== undefined) {
      throw new Refused("too many fields: either `mem_backend` or `mem_file_path` exclusively is required");
    }
    const { backend_type: type, backend_path: file } = (backend ?? { backend_type: "File", backend_path: memoryPath }) as Record<
      string,
      string
    >;
    if (file === undefined) throw new Refused("missing field: either `mem_backend` or `mem_file_path` is required");
    if (this.#configured) {
      throw new Refused("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.");
    }
    if (type === "Uffd") throw new Refused("the fake has no page fault handler");
    try {
      this.#restore(statePath as string, file);
    } catch (error) {
      throw new Fatal(`Load snapshot error: Failed to restore from snapshot: ${(error as Error).message}`);
    }
    this.#paused = resume !== true;
  }

  #restore(statePath: string, memoryPath: string): void {
    const stateFile = this.#files.open(statePath, "read");
    const state = JSON.parse(readFileSync(stateFile, "utf8")) as State;
    this.#files.close(stateFile);
    const memory = this.#files.open(memoryPath, "read");
    if (!memoryFits(this.#files.resolve(memoryPath), state.memSizeMiB * 1024 * 1024)) throw new Error("the memory file has another size");
    this.#bootArguments = state.bootArguments;
    this.#memSizeMiB = state.memSizeMiB;
    // Under the paths of the machine that was saved, seen from here.
    this.#drives = state.drives.map((drive) => this.#openDrive(drive));
    if (state.vsock !== undefined) this.#listen(state.vsock);
    this.#guest = new Guest(this.#hardware(state.bootArguments), memory);
  }

  #openDrive(drive: Omit<Drive, "file">): Drive {
    return { ...drive, file: this.#files.open(drive.path, drive.readOnly ? "read" : "read_write") };
  }

  #hardware(bootArguments: string) {
    const drive = (index: number) => {
      // The root device is the first, whenever it was added.
      const inOrder = [...this.#drives].sort((a, b) => Number(b.root) - Number(a.root));
      if (!inOrder[index]) throw new Error(`the guest has no drive ${index}`);
      return inOrder[index].file;
    };
    return { bootArguments, drive };
  }

  /** The socket must not be there: Firecracker binds it, and a second VMM in the same folder would fail here. */
  #listen(path: string): void {
    const file = this.#files.resolve(path);
    if (this.#vsock) {
      this.#vsock.server.close();
      rmSync(this.#files.resolve(this.#vsock.path), { force: true });
    }
    if (existsSync(file)) throw new Refused(`Vsock config error: Cannot create backend for vsock device: ${path}: Address in use`);
    // Relative, since the absolute path may be too long for a socket; the process works in its folder.
    this.#vsock = { path, server: createServer((socket) => this.#accept(socket)).listen(path) };
  }

  #accept(socket: Socket): void {
    socket.on("error", () => socket.destroy());
    let request = Buffer.alloc(0);
    const read = (chunk: Buffer) => {
      request = Buffer.concat([request, chunk]);
      const end = request.indexOf("\n");
      if (end < 0 && request.length <= 32) return;
      socket.off("data", read);
      const port = /^CONNECT (\d+)$/.exec(request.toString("latin1", 0, Math.max(0, end)))?.[1];
      if (port === undefined) return void socket.destroy();
      this.#whileRunning(() => this.#connect(Number(port), socket, request.subarray(end + 1)));
    };
    socket.on("data", read);
  }

  #connect(port: number, socket: Socket, first: Buffer): void {
    if (!this.#guest?.listensOn(port)) return void socket.destroy();
    this.#hostPort += 1;
    socket.write(`OK ${this.#hostPort}\n`);
    this.#guest.connect(port, socket, first);
  }

  /** A guest that stands still answers nobody. */
  #whileRunning(action: () => void): void {
    if (this.#paused) this.#waiting.push(action);
    else action();
  }
}

/** Refused, and the process ends: it may be in any state. */
export class Fatal extends Refused {}

const actions: Readonly<Record<string, (vmm: Vmm, body: Body) => void>> = {
  "boot-source": (vmm, body) => vmm.bootSource(body),
  "machine-config": (vmm, body) => vmm.machineConfig(body),
  drive: (vmm, body) => vmm.addDrive(body),
  "drive-update": (vmm, body) => vmm.updateDrive(body),
  vsock: (vmm, body) => vmm.addVsock(body),
  entropy: () => {},
  start: (vmm) => vmm.start(),
  vm: (vmm, body) => vmm.setState(body),
  "snapshot-create": (vmm, body) => vmm.createSnapshot(body),
  "snapshot-load": (vmm, body) => vmm.loadSnapshot(body),
};
