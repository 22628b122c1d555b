// `mitos setup microvm`, and a part of the set-up of development: everything that virtual machines are made of, in .cache/microvm.
import path from "node:path";
import { cache, removeLeftovers, root, SetupError, step } from "../run.mjs";
import { ensureDisk } from "./disk.mjs";
import { ensureKernel } from "./kernel.mjs";
import { partsFolder, readPart } from "./parts.mjs";
import { ensureRoot } from "./root.mjs";
import { ensureVmm } from "./vmm.mjs";

/** Looks first, and makes only what is missing or out of date. */
export async function ensureMicrovm() {
  if (process.arch !== "x64") {
    throw new SetupError(`microVMs need an x86-64 machine; this is ${process.arch}`, "Nothing has to be done: gVisor works here.");
  }
  await step("QEMU", ensureVmm);
  await step("kernel of virtual machines", ensureKernel);
  await step("disk of virtual machines", ensureDisk);
  await step("root of virtual machines", ensureRoot);
}

/** Of set-ups that were killed in their middle. */
export function removeMicrovmLeftovers() {
  for (const prefix of ["apt-", "image-tools.partial-"]) removeLeftovers(cache, prefix);
  removeLeftovers(partsFolder, "partial-");
}

/** Where they are, for the guest's tests, which start QEMU themselves. Empty where there are none. */
export function microvmEnvironment() {
  const place = (part, ...below) => path.join(partsFolder, readPart(part).name, ...below);
  if (!["vmm", "kernel", "disk", "root"].every(readPart)) return {};
  return {
    MITOS_QEMU_ROOT: place("vmm"),
    MITOS_VM_KERNEL: place("kernel", "vmlinux"),
    MITOS_VM_MODULES: place("kernel", "modules"),
    MITOS_VM_DISK: place("disk"),
    MITOS_VM_ROOT: place("root"),
    MITOS_VM_AGENT: path.join(root, "guest/target/x86_64-unknown-linux-gnu/release/mitos-guest"),
  };
}
