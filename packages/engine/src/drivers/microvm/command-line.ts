import type { Accel } from "../../actions.ts";
import type { MachineResources } from "../../driver.ts";
import { placeholderArgs } from "./disk-steps.ts";

/** Numbers at which the monitor of a machine finds its files open; 3 is the link, 4 the shim's connection to it. */
export const files = { memory: 20, image: 21, kernel: 22, initramfs: 23 } as const;
/** The root image, in the monitor. */
export const imageNode = "image";
const imageSet = 1;
const agent = "/own/upper/opt/mitos/bin/mitos-guest";
export const diskDevice = "/dev/vdb";
/** Of code that emulation has translated. The default, a fifth of the machine's memory, would make most of what a child costs. */
const translatedMiB = 32;

export interface MachineShape {
  readonly resources: MachineResources;
  /** Key of its root image. */
  readonly image: string;
  /** Id of its memory file. */
  readonly base: string;
  /** Whether it begins with the kernel and writes to its memory file. Otherwise it goes on from a saved state, and keeps what it changes for itself. */
  readonly boots: boolean;
}

export interface CommandLine {
  /** In the monitor's own root. */
  readonly program: string;
  /** What tells the process apart from those of others. */
  readonly name: string;
  readonly shape: MachineShape;
  /** Where in its file the memory begins, in bytes. */
  readonly memoryOffset: number;
  readonly accel: Accel;
  readonly diskBytes: number;
  readonly tscKhz: number;
}

/**
 * QEMU with the least that a machine needs: no device but two disks, the link, randomness and a console that can only write. It waits before its
 * first instruction, or for a state, until it has its disk.
 */
export function qemuArgs({ program, name, shape, memoryOffset, accel, diskBytes, tscKhz }: CommandLine): string[] {
  const { resources, boots } = shape;
  const memory = `${resources.memSizeMiB}M`;
  return [
    program,
    ...["-name", name.replaceAll(",", ",,")],
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"],
    ...["-L", "/usr/share/qemu", "-bios", "qboot.rom"],
    ...["-machine", "microvm,acpi=on,x-option-roms=off,pit=off,pic=off,rtc=on,usb=off,auto-kernel-cmdline=off,memory-backend=mem"],
    ...processorArgs(accel),
    ...["-smp", String(resources.vcpuCount), "-m", memory],
    ...["-object", memoryObject(memory, memoryOffset, boots)],
    ...(boots ? kernelArgs(accel, tscKhz) : ["-incoming", "defer"]),
    // Not even a restored machine runs before it is told to.
    "-S",
    // Its standard output is the shim's log of the machine, of which the first and last part are kept.
    ...["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
    ...[
      "-chardev",
      "socket,id=link,fd=3",
      "-device",
      "virtio-serial-device",
      "-device",
      "virtserialport,chardev=link,name=mitos.link,id=link-port",
    ],
    ...["-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control"],
    ...["-device", "virtio-rng-device"],
    ...imageArgs(),
    ...placeholderArgs(diskBytes),
  ];
}

function processorArgs(accel: Accel): string[] {
  // The oldest processor that today's programs are built for (x86-64-v2): what is emulated beyond it only costs. Its timer goes on while it sleeps (ARAT), so
  // that a machine with nothing to do is not woken 250 times a second.
  if (accel === "tcg") return ["-accel", `tcg,thread=multi,tb-size=${translatedMiB}`, "-cpu", "Nehalem,-spec-ctrl,+rdrand,+arat"];
  return ["-accel", "kvm", "-cpu", "host,migratable=on"];
}

function memoryObject(size: string, offset: number, boots: boolean): string {
  const access = boots ? "share=on" : "share=off,readonly=on,rom=off";
  return `memory-backend-file,id=mem,size=${size},mem-path=/proc/self/fd/${files.memory},offset=${offset},${access}`;
}

function kernelArgs(accel: Accel, tscKhz: number): string[] {
  const parameters = [
    "console=ttyS0 quiet loglevel=4",
    // A kernel that is lost ends its machine.
    "panic=-1 reboot=t",
    "lsm= audit=0 psi=0 cryptomgr.notests",
    // There is nothing to check it against, and without a clock that it trusts the kernel counts ticks. A machine that stands still must not think it hangs.
    `tsc_early_khz=${tscKhz} tsc=reliable nowatchdog`,
    // An emulated processor does not guess ahead, so there is nothing to protect from.
    ...(accel === "tcg" ? ["mitigations=off"] : []),
    `rdinit=${agent} mitos.disk=${diskDevice} -- boot`,
  ];
  return ["-kernel", `/proc/self/fd/${files.kernel}`, "-initrd", `/proc/self/fd/${files.initramfs}`, "-append", parameters.join(" ")];
}

function imageArgs(): string[] {
  const image = { driver: "raw", "node-name": imageNode, "read-only": true, "auto-read-only": false };
  const file = { driver: "file", filename: `/dev/fdset/${imageSet}`, "read-only": true, "auto-read-only": false };
  return [
    ...["-add-fd", `fd=${files.image},set=${imageSet}`],
    ...["-blockdev", JSON.stringify({ ...image, file })],
    ...["-device", `virtio-blk-device,drive=${imageNode}`],
  ];
}
