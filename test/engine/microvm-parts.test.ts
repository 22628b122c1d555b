import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { decompressed, kernelOf } from "../../scripts/lib/microvm/payload.mjs";
import { until } from "../support/until.ts";

const repository = path.resolve(import.meta.dirname, "../..");

/** What set-up has made on this machine. */
describe.skipIf(process.arch !== "x64")("the parts of virtual machines", () => {
  const parts = path.join(repository, ".cache/microvm");
  const record = (part: string) => JSON.parse(readFileSync(path.join(parts, `${part}.json`), "utf8"));
  const placeOf = (part: string, ...below: string[]) => path.join(parts, record(part).name, ...below);

  it("are not made again by a second `mitos setup microvm`", () => {
    const before = readdirSync(parts).filter((name) => !name.startsWith("initramfs-"));
    const mitos = path.join(repository, "packages/cli/bin/mitos.js");
    const { status, stderr } = spawnSync(process.execPath, [mitos, "setup", "microvm"], { encoding: "utf8" });
    expect(status).toBe(0);
    expect(stderr.match(/up to date/g)).toHaveLength(4);
    expect(readdirSync(parts).filter((name) => !name.startsWith("initramfs-"))).toEqual(before);
  });

  it("QEMU starts where it sees nothing but its own folder", () => {
    const inFolder = ["chroot", placeOf("vmm"), record("vmm").program, "-M", "help"];
    const [command, ...args] = process.getuid?.() === 0 ? inFolder : ["unshare", "--user", "--map-root-user", ...inFolder];
    expect(execFileSync(command!, args, { encoding: "utf8" })).toMatch(/^microvm /m);
    expect(readdirSync(placeOf("vmm", "usr/share/qemu"))).toContain("qboot.rom");
    for (const dir of ["dev", "proc", "tmp"]) expect(readdirSync(placeOf("vmm", dir))).toEqual([]);
  });

  it("the kernel is an ELF file, and each module stands after those that it needs", () => {
    expect(readFileSync(placeOf("kernel", "vmlinux")).toString("latin1", 0, 4)).toBe("\x7fELF");
    const order = readFileSync(placeOf("kernel", "modules/order"), "utf8").trim().split("\n");
    expect(readdirSync(placeOf("kernel", "modules")).sort()).toEqual([...order, "order"].sort());
    for (const [index, name] of order.entries()) {
      const needs = /\0depends=([^\0]*)\0/.exec(readFileSync(placeOf("kernel", "modules", name), "latin1"))?.[1] ?? "";
      const before = order.slice(0, index);
      for (const other of needs.split(",").filter(Boolean)) expect(before).toContain(`${other.replaceAll("-", "_")}.ko`);
    }
    expect(order).toEqual(expect.arrayContaining(["virtio_mmio.ko", "virtio_blk.ko", "virtio_console.ko", "erofs.ko", "overlay.ko"]));
  });

  it("the disk is an empty file system that takes no place and leaves a kernel nothing to write before its use", () => {
    const file = placeOf("disk");
    expect(execFileSync("/usr/sbin/e2fsck", ["-fn", file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })).toMatch(
      / 11\/\d+ files/,
    );
    const { size, blocks, mode } = statSync(file);
    expect(size).toBe(record("disk").bytes);
    expect(blocks * 512).toBeLessThan(1 << 20);
    expect(mode & 0o777).toBe(0o444);
    const groups = execFileSync("/usr/sbin/dumpe2fs", [file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const count = (pattern: RegExp) => groups.match(pattern)?.length;
    expect(count(/^Group \d+:/gm)).toBe(128);
    expect(count(/ITABLE_ZEROED/g)).toBe(128);
    expect(groups).not.toMatch(/has_journal/);
  });
});

describe("what a kernel and its modules are compressed with", () => {
  const content = Buffer.from(`\x7fELF${"all work and no play ".repeat(1_000)}`, "latin1");
  /** The literals, and then what repeats, 21 bytes back and 20,979 long. */
  const start = content.subarray(0, 25);
  const lengths = (length: number) => [...Array.from({ length: Math.floor(length / 255) }, () => 255), length % 255];
  const match = content.length - start.length - 5;
  const block = Buffer.from([
    ...[0xff, ...lengths(start.length - 15), ...start, 21, 0, ...lengths(match - 4 - 15)],
    ...[0x50, ...content.subarray(-5)],
  ]);
  const lz4 = (...blocks: Buffer[]) =>
    Buffer.concat([Buffer.from("02214c18", "hex"), ...blocks.flatMap((piece) => [littleEndian(piece.length), piece])]);

  it.each([
    ["LZ4, one block", lz4(block), content],
    ["LZ4, several", lz4(block, block), Buffer.concat([content, content])],
    ["gzip", gzipSync(content), content],
    ["nothing", content, content],
  ])("%s", (_, data, wanted) => {
    expect(decompressed(data).equals(wanted)).toBe(true);
  });

  it("zstd, with the length that a kernel's build puts behind it", () => {
    const data = Buffer.concat([zstdCompressSync(content), littleEndian(content.length)]);
    expect(decompressed(data, { sizeAtEnd: true }).equals(content)).toBe(true);
  });

  it.each([
    ["literals behind the end", Buffer.from([0xf0, 255, 0, 1])],
    ["a match before the start", Buffer.from([0x10, 65, 2, 0, 0])],
    ["a match of distance 0", Buffer.from([0x10, 65, 0, 0, 0])],
    ["more than a block holds", Buffer.concat([Buffer.from([0x1f, 65, 1, 0]), Buffer.alloc(40_000, 255), Buffer.from([0])])],
  ])("refuses %s", (_, damaged) => {
    expect(() => decompressed(lz4(damaged))).toThrow(/damaged/);
  });

  it("takes the kernel out of a vmlinuz", () => {
    const payload = Buffer.concat([lz4(block), littleEndian(content.length)]);
    const vmlinuz = Buffer.alloc(3 * 512 + 100);
    vmlinuz.writeUInt8(2, 0x1f1); // sectors of its set-up beside the first
    vmlinuz.write("HdrS", 0x202, "latin1");
    vmlinuz.writeUInt32LE(100, 0x248);
    vmlinuz.writeUInt32LE(payload.length, 0x24c);
    expect(kernelOf(Buffer.concat([vmlinuz, payload, Buffer.from("what follows")])).equals(content)).toBe(true);
    expect(() => kernelOf(Buffer.alloc(4096))).toThrow(/no bzImage/);
  });
});

describe("set-up of virtual machines", () => {
  let checkout: string;
  /** With nothing set up: its scripts are copies, so that all they make lies in it. */
  beforeAll(() => {
    checkout = mkdtempSync(path.join(os.tmpdir(), "mitos-checkout-"));
    for (const name of ["scripts", "package.json"]) cpSync(path.join(repository, name), path.join(checkout, name), { recursive: true });
    for (const name of ["guest", "node_modules"]) symlinkSync(path.join(repository, name), path.join(checkout, name));
    mkdirSync(path.join(checkout, ".cache"));
  });
  afterAll(() => rmSync(checkout, { recursive: true }));
  const cache = () => readdirSync(path.join(checkout, ".cache"));

  it("leaves nothing half-made and nothing running when it is interrupted", { timeout: 60_000 }, async () => {
    const setUp = spawn(process.execPath, [path.join(checkout, "scripts/setup-microvm.mjs")], { stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    setUp.stderr.on("data", (data) => (said += data));
    const ended = once(setUp, "close");
    // A folder of apt's: it has begun to ask the archive.
    await until("it asks the archive", () => setUp.exitCode !== null || cache().some((name) => name.startsWith("apt-")));
    const group = groupBelow(setUp);
    setUp.kill("SIGINT");
    expect(await ended).toEqual([130, null]);
    expect(said).toMatch(/error: interrupted.*\nnext: /);
    expect(cache()).toEqual(["microvm"]);
    expect(readdirSync(path.join(checkout, ".cache/microvm"))).toEqual([]);
    expect(membersOf(group)).toEqual([]);
  });

  it("makes a part once, again when what it is made from differs, and not at all when making it fails", async () => {
    const { ensurePart, partsFolder, readPart } = await import(path.join(checkout, "scripts/lib/microvm/parts.mjs"));
    expect(partsFolder).toBe(path.join(checkout, ".cache/microvm"));
    let times = 0;
    const make = (content: string) => (work: string) => {
      times++;
      writeFileSync(path.join(work, "made"), content);
      return { made: path.join(work, "made"), name: `part-${content}`, record: { says: content } };
    };
    await ensurePart("part", { recipe: 1 }, make("one"));
    await ensurePart("part", { recipe: 1 }, make("other"));
    expect([times, readPart("part")]).toMatchObject([1, { name: "part-one", says: "one" }]);
    await expect(
      ensurePart("part", { recipe: 2 }, () => {
        throw new Error("no space");
      }),
    ).rejects.toThrow("no space");
    expect(readPart("part")).toMatchObject({ name: "part-one" });
    await ensurePart("part", { recipe: 2 }, make("two"));
    expect(readPart("part")).toMatchObject({ name: "part-two" });
    // What a paused sandbox may still need.
    expect(existsSync(path.join(partsFolder, "part-one"))).toBe(true);
    rmSync(path.join(partsFolder, "part-two"));
    await ensurePart("part", { recipe: 2 }, make("two"));
    expect(times).toBe(3);
    expect(readdirSync(partsFolder).filter((name) => name.startsWith("partial-"))).toEqual([]);
  });
});

function littleEndian(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** The group of processes that the set-up has started for its work. */
function groupBelow({ pid }: ChildProcess): number {
  const found = processes().find(({ parent }) => parent === pid);
  return found!.group;
}

function membersOf(group: number): number[] {
  return processes()
    .filter((process) => process.group === group && process.state !== "Z")
    .map((process) => process.id);
}

function processes() {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const [state, parent, group] = readFileSync(`/proc/${name}/stat`, "latin1")
          .replace(/^.*\) /s, "")
          .split(" ");
        return [{ id: Number(name), state, parent: Number(parent), group: Number(group) }];
      } catch {
        return []; // it has just ended
      }
    });
}
