// The kernel of virtual machines: the distribution's own for cloud machines, with the few modules that it needs there.
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "../distribution-package.mjs";
import { SetupError } from "../run.mjs";
import { ensurePart, hashOf, hashOfFile } from "./parts.mjs";
import { decompressed, kernelOf } from "./payload.mjs";

/** Goes into the part's key: a change of what is done below makes it anew. */
const recipe = 1;
/** What a machine has devices and file systems for. Those that a kernel has built in are left out. */
const modules = ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng", "erofs", "overlay", "ext4", "vmw_vsock_virtio_transport"];
const remedy =
  "It comes from the archive of Debian or Ubuntu: check that this machine reaches one, or copy .cache/microvm from a machine that does.";

/** @returns a note about it */
export function ensureKernel() {
  return ensurePart("kernel", { recipe, modules }, async (work) => {
    const unpacked = path.join(work, "unpacked");
    await unpack(unpacked, work);
    const release = readdirSync(path.join(unpacked, "boot"))
      .map((file) => /^vmlinuz-(.+)$/.exec(file)?.[1])
      .find(Boolean);
    if (!release) throw new SetupError("the kernel's package holds no kernel", remedy);
    const made = path.join(work, "kernel");
    mkdirSync(path.join(made, "modules"), { recursive: true });
    const kernel = path.join(made, "vmlinux");
    writeFileSync(kernel, kernelOf(readFileSync(path.join(unpacked, "boot", `vmlinuz-${release}`))));
    const hash = hashOfFile(kernel);
    const written = writeModules(modulesFolder(unpacked, release), path.join(made, "modules"));
    chmodSync(kernel, 0o444);
    const modulesHash = hashOf(written);
    // A release may be built anew under its name.
    return { made, name: `kernel-${release}-${hashOf([hash, modulesHash]).slice(0, 8)}`, record: { release, hash, modulesHash } };
  });
}

/** The kernel and its modules, not what would install them on this machine. */
async function unpack(folder, work) {
  const nothing = path.join(work, "nothing");
  writeFileSync(nothing, "");
  await unpackDistributionPackages(({ id }) => [id === "ubuntu" ? "linux-image-virtual" : "linux-image-cloud-amd64"], {
    folder,
    remedy,
    have: nothing, // also where this machine runs that kernel itself
    dependencies: /^linux-(image|modules)-\d/,
    suites: ({ id, codename }) => (id === "ubuntu" ? [[codename, `${codename}-updates`]] : [codename]),
  });
}

function modulesFolder(unpacked, release) {
  const found = ["lib/modules", "usr/lib/modules"]
    .map((dir) => path.join(unpacked, dir, release))
    .find((dir) => existsSync(path.join(dir, "kernel")));
  if (!found) throw new SetupError(`the kernel's package holds no modules of ${release}`, remedy);
  return found;
}

/** With `order`: their names, each after those that it needs. @returns names and hashes in that order */
function writeModules(source, target) {
  const files = new Map();
  for (const entry of filesBelow(path.join(source, "kernel"))) {
    const name = /^(.+)\.ko(\.xz|\.zst|\.gz)?$/.exec(path.basename(entry))?.[1];
    if (name) files.set(canonical(name), entry);
  }
  const builtIn = new Set(
    readFileSync(path.join(source, "modules.builtin"), "utf8")
      .split("\n")
      .map((line) => canonical(path.basename(line, ".ko"))),
  );
  const order = new Map();
  const add = (name, needed) => {
    if (order.has(name)) return;
    const file = files.get(name);
    if (!file) {
      if (builtIn.has(name) || !needed) return;
      throw new SetupError(`the kernel of the distribution has no module ${name}`, remedy);
    }
    const content = decompressed(readFileSync(file));
    const { depends, before } = needsOf(content);
    for (const other of before) add(other, false);
    for (const other of depends) add(other, true);
    order.set(name, content);
  };
  for (const name of modules) add(name, true);
  for (const [name, content] of order) writeFileSync(path.join(target, `${name}.ko`), content, { mode: 0o444 });
  writeFileSync(path.join(target, "order"), [...order.keys()].map((name) => `${name}.ko\n`).join(""), { mode: 0o444 });
  return [...order.keys()].map((name) => [name, hashOfFile(path.join(target, `${name}.ko`))]);
}

/** The package has no `modules.dep`, which is made where it is installed; each module says itself what it needs. */
function needsOf(content) {
  const text = content.toString("latin1");
  const list = (pattern) => (pattern.exec(text)?.[1] ?? "").split(/[ ,]+/).filter(Boolean).map(canonical);
  return { depends: list(/\0depends=([^\0]*)\0/), before: list(/\0softdep=pre: ([^\0:]*?)(?: post:[^\0]*)?\0/) };
}

function canonical(name) {
  return name.replaceAll("-", "_");
}

function filesBelow(dir) {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesBelow(path.join(dir, entry.name)) : [path.join(dir, entry.name)],
  );
}
