// `mitos setup microvm`, and a part of the set-up of development: everything that virtual machines are made of, in .cache/microvm.
import { cache, removeLeftovers, SetupError, step } from "../run.mjs";
import { ensureDisk } from "./disk.mjs";
import { ensureKernel } from "./kernel.mjs";
import { partsFolder } from "./parts.mjs";
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
