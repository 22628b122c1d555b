import type { MachineResources } from "../../driver.ts";
import type { Call } from "./api.ts";

/** Drives in the order in which the guest sees them: `/dev/vda`, `/dev/vdb`. Ids of Firecracker's have letters, digits and underscores. */
export const rootDrive = "rootfs";
export const writtenDrive = "written";

/** Relative to each VMM's own folder: a snapshot names the socket, and every VMM that loads it makes one of its own. */
export const vsockName = "vsock.sock";
/** Where the agent listens for its link (docs/firecracker.md). */
export const linkPort = 53;
/** Every guest has the same: the socket tells them apart. */
const guestCid = 3;

/**
 * `panic=1 reboot=k` end the VMM with its guest. The first word that the kernel does not know is the first program's argument: not after ` -- `,
 * where what Firecracker itself appends would become arguments too.
 */
const bootArguments = [
  "console=ttyS0 reboot=k panic=1 pci=off random.trust_cpu=on",
  "cryptomgr.notests audit=0 quiet",
  `mitos.disk=/dev/vdb mitos.link=vsock:${linkPort}`,
  "rdinit=/own/upper/opt/mitos/bin/mitos-guest boot",
].join(" ");

/** Paths as the VMM sees them. */
export interface BootFiles {
  readonly kernel: string;
  readonly initramfs: string;
  readonly root: string;
  readonly written: string;
}

/** Up to `InstanceStart`, which is a call of its own: until then nothing of the guest runs. */
export function bootCalls(files: BootFiles, resources: MachineResources): readonly Call[] {
  return [
    put("/boot-source", { kernel_image_path: files.kernel, initrd_path: files.initramfs, boot_args: bootArguments }),
    put("/machine-config", { vcpu_count: resources.vcpuCount, mem_size_mib: resources.memSizeMiB }),
    put(`/drives/${rootDrive}`, { drive_id: rootDrive, path_on_host: files.root, is_read_only: true, is_root_device: true }),
    put(`/drives/${writtenDrive}`, { drive_id: writtenDrive, path_on_host: files.written, is_read_only: false, is_root_device: false }),
    put("/vsock", { guest_cid: guestCid, uds_path: vsockName }),
    put("/entropy", {}),
  ];
}

export const startCalls: readonly Call[] = [put("/actions", { action_type: "InstanceStart" })];
export const pauseCalls: readonly Call[] = [patch("/vm", { state: "Paused" })];
export const resumeCalls: readonly Call[] = [patch("/vm", { state: "Resumed" })];

/** Of a paused machine. Neither file exists yet: an existing one would be rewritten under those who map it. */
export function saveCalls(files: { readonly state: string; readonly memory: string }): readonly Call[] {
  return [put("/snapshot/create", { snapshot_type: "Full", snapshot_path: files.state, mem_file_path: files.memory })];
}

/**
 * Up to a paused machine that has its own disk. The memory file is mapped privately (`File`), so that it is in memory once for all machines of
 * it; it must never change. What the snapshot says of drives is relative as well, and the writable one is named once more before the guest runs.
 */
export function loadCalls(files: { readonly state: string; readonly memory: string; readonly written: string }): readonly Call[] {
  return [
    put("/snapshot/load", {
      snapshot_path: files.state,
      mem_backend: { backend_type: "File", backend_path: files.memory },
      resume_vm: false,
    }),
    patch(`/drives/${writtenDrive}`, { drive_id: writtenDrive, path_on_host: files.written }),
  ];
}

function put(path: string, body: Call["body"]): Call {
  return { method: "PUT", path, body };
}

function patch(path: string, body: Call["body"]): Call {
  return { method: "PATCH", path, body };
}
