import { randomBytes } from "node:crypto";
import { mkdtemp, open, readdir, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Disks } from "./disks.ts";

let base: string;
let dir: string;
const diskBytes = 16 * 2 ** 30;
const nobody = async () => new Set<string>();

beforeEach(async () => {
  base = await mkdtemp("/tmp/mitos-disks-");
  dir = path.join(base, "disks");
  await using empty = await open(path.join(base, "empty.ext4"), "wx", 0o444);
  await empty.write("an empty file system");
  await empty.truncate(diskBytes);
});
afterEach(() => rm(base, { recursive: true, force: true }));

const openDisks = (hash = "0123456789abcdef0123") =>
  Disks.open({ dir, emptyDisk: { path: path.join(base, "empty.ext4"), bytes: diskBytes, hash } });
const incompatible = (cause: RegExp) => ({ code: "snapshot_incompatible", detail: { cause: expect.stringMatching(cause) } });
const namesOf = (chain: readonly string[]) => chain.map((file) => path.basename(file));

describe("disks", () => {
  it("lie over the empty disk, and over each other", async () => {
    const disks = await openDisks();
    using first = await disks.create(null);
    using second = await disks.create(first.id);
    expect(namesOf(second.chain)).toEqual(["empty-0123456789ab.ext4", `${first.id}.qcow2`, `${second.id}.qcow2`]);
    expect(await disks.chainOf(second.id)).toEqual(second.chain);
    expect(second.path).toBe(second.chain.at(-1));
    expect((await stat(second.path)).mode & 0o777).toBe(0o600);
  });

  it("take no room for what is not written", async () => {
    const disks = await openDisks();
    using disk = await disks.create(null);
    for (const file of disk.chain) expect((await stat(file)).blocks * 512).toBeLessThan(64 * 1024);
  });

  it("are there again for the next server", async () => {
    const disks = await openDisks();
    using first = await disks.create(null);
    using second = await disks.create(first.id);
    expect(await (await openDisks()).chainOf(second.id)).toEqual(second.chain);
  });

  it("stay while somebody holds one that stands on them, or has just made it", async () => {
    const disks = await openDisks();
    const first = await disks.create(null);
    const second = await disks.create(first.id);
    using third = await disks.create(second.id);
    using other = await disks.create(null);
    const unheld = await disks.create(null);
    for (const disk of [first, second, unheld]) disk[Symbol.dispose]();
    await disks.removeUnused(nobody);
    expect(await disks.chainOf(third.id)).toEqual(third.chain);
    expect(await disks.chainOf(other.id)).toEqual(other.chain);
    await expect(disks.chainOf(unheld.id)).rejects.toMatchObject({ code: "not_found" });

    third[Symbol.dispose]();
    other[Symbol.dispose]();
    await disks.removeUnused(async () => new Set([second.id]));
    expect((await readdir(dir)).sort()).toEqual(
      [first, second]
        .flatMap(({ id }) => [`${id}.below`, `${id}.qcow2`])
        .concat("empty-0123456789ab.ext4")
        .sort(),
    );
  });

  it("that are asked for during a removal do not lose what they stand on", async () => {
    const disks = await openDisks();
    const first = await disks.create(null);
    first[Symbol.dispose]();
    let asked: ReturnType<typeof disks.create> | undefined;
    await disks.removeUnused(async () => {
      asked = disks.create(first.id);
      return new Set([first.id]);
    });
    using second = (await asked) as Awaited<typeof asked> & Disposable;
    expect(second).toMatchObject({ chain: await disks.chainOf(second?.id as string) });
    // And one that comes too late learns so.
    const late = disks.removeUnused(nobody).then(() => disks.create("0123456789ab"));
    await expect(late).rejects.toMatchObject({ code: "not_found" });
  });

  it("can be made before it is known what they will lie over", async () => {
    const disks = await openDisks();
    using first = await disks.create(null);
    const loose = await disks.createLoose();
    await disks.removeUnused(nobody);
    using disk = await disks.place(loose, first.id);
    expect(namesOf(disk.chain)).toEqual(["empty-0123456789ab.ext4", `${first.id}.qcow2`, `${loose.id}.qcow2`]);
    expect(await disks.chainOf(disk.id)).toEqual(disk.chain);
    using other = await disks.create(first.id);
    expect(await readFile(disk.path)).toEqual(await readFile(other.path));
    loose[Symbol.dispose]();
    await disks.removeUnused(async () => new Set([first.id, other.id]));
    expect((await readdir(dir)).filter((name) => name.startsWith(loose.id))).toEqual([]);
  });

  it("that were to lie over one that is gone lie over nothing still", async () => {
    const disks = await openDisks();
    using first = await disks.create(null);
    using loose = await disks.createLoose();
    await expect(disks.place(loose, "0123456789ab")).rejects.toMatchObject({ code: "not_found" });
    expect(await readdir(dir)).not.toContain(`${loose.id}.below`);
    using disk = await disks.place(loose, first.id);
    expect(await disks.chainOf(disk.id)).toEqual([...first.chain, loose.path]);
  });

  it("forget what lay between when they are collapsed", async () => {
    const disks = await openDisks();
    const first = await disks.create(null);
    const second = await disks.create(first.id);
    using third = await disks.create(second.id);
    for (const disk of [first, second]) disk[Symbol.dispose]();
    expect(await disks.collapsed(third.id)).toEqual({ id: third.id, path: third.path, chain: [third.chain[0], third.path] });
    await disks.removeUnused(nobody);
    expect((await readdir(dir)).sort()).toEqual([`${third.id}.below`, `${third.id}.qcow2`, "empty-0123456789ab.ext4"].sort());
  });

  it("keep the empty disk of older ones, and only as long as it is needed", async () => {
    const old = await openDisks("aaaaaaaaaaaaaaaa");
    using disk = await old.create(null);
    const disks = await openDisks("bbbbbbbbbbbbbbbb");
    await disks.removeUnused(async () => new Set([disk.id]));
    using over = await disks.create(disk.id);
    expect(namesOf(over.chain)[0]).toBe("empty-aaaaaaaaaaaa.ext4");
    over[Symbol.dispose]();
    await disks.removeUnused(nobody);
    expect(await readdir(dir)).toEqual(["empty-bbbbbbbbbbbb.ext4"]);
  });

  it.each([true, false])(
    "that are sealed are known again, and refused when one of them was cut, grew or is gone (durable: %s)",
    async (durable) => {
      const disks = await openDisks();
      using first = await disks.create(null);
      using second = await disks.create(first.id);
      const { files: sealed } = await disks.seal(second.id, { durable });
      const look = (content = false) => disks.requireIntact(second.id, sealed, { content });
      const refused = (cause: RegExp) => expect(look()).rejects.toMatchObject(incompatible(cause));
      await look(true);
      const { size } = await stat(first.path);
      await truncate(first.path, size - 1);
      await refused(/bytes instead of/);
      await truncate(first.path, size + 1);
      await refused(/bytes instead of/);
      await rm(first.path);
      await refused(/it is gone/);
    },
  );

  it("that are sealed to last are refused for one changed bit, and not for other times", async () => {
    const disks = await openDisks();
    using disk = await disks.create(null);
    const { files: sealed } = await disks.seal(disk.id, { durable: true });
    const content = await readFile(disk.path);
    await writeFile(disk.path, content);
    await disks.requireIntact(disk.id, sealed, { content: true });
    content[content.length >> 1]! ^= 1;
    await writeFile(disk.path, content);
    await expect(disks.requireIntact(disk.id, sealed, { content: true })).rejects.toMatchObject(incompatible(/its content has changed/));
  });

  it("that are sealed are refused when they stand on another disk, or on none", async () => {
    const disks = await openDisks();
    using first = await disks.create(null);
    using second = await disks.create(first.id);
    using other = await disks.create(null);
    const { files: sealed } = await disks.seal(second.id, { durable: false });
    await rm(path.join(dir, `${second.id}.below`));
    await expect(disks.requireIntact(second.id, sealed, { content: false })).rejects.toMatchObject(incompatible(/is gone/));
    await symlink(path.basename(other.path), path.join(dir, `${second.id}.below`));
    await expect(disks.requireIntact(second.id, sealed, { content: false })).rejects.toMatchObject(incompatible(/does not stand on/));
  });

  it("half made by a server that was killed are removed", async () => {
    const disks = await openDisks();
    await symlink("empty-0123456789ab.ext4", path.join(dir, "00000000000a.below"));
    await symlink("empty-0123456789ab.ext4", path.join(dir, "00000000000b.below.partial-12"));
    await writeFile(path.join(dir, "empty-cccccccccccc.ext4.partial-12"), "");
    await expect(disks.chainOf("00000000000a")).rejects.toMatchObject({ code: "not_found" });
    await disks.removeUnused(nobody);
    expect(await readdir(dir)).toEqual(["empty-0123456789ab.ext4"]);
  });

  it("refuse names that are none, and chains without an end", async () => {
    const disks = await openDisks();
    for (const id of ["", "../../etc/passwd", "0123456789AB", "empty-0123456789ab"]) {
      await expect(disks.chainOf(id)).rejects.toMatchObject({ code: "invalid_input" });
      await expect(disks.create(id)).rejects.toMatchObject({ code: "invalid_input" });
    }
    for (const [id, below] of [
      ["00000000000a", "00000000000b"],
      ["00000000000b", "00000000000a"],
      ["00000000000c", "../x"],
    ] as const) {
      await writeFile(path.join(dir, `${id}.qcow2`), randomBytes(1));
      await symlink(below.startsWith(".") ? below : `${below}.qcow2`, path.join(dir, `${id}.below`));
    }
    await expect(disks.chainOf("00000000000a")).rejects.toMatchObject({ code: "internal" });
    await expect(disks.chainOf("00000000000c")).rejects.toMatchObject({ code: "internal" });
    await disks.removeUnused(async () => new Set(["00000000000a", "00000000000c"]));
  });

  it("say on their own what lies below, for other tools", async () => {
    const disks = await openDisks();
    using disk = await disks.create(null);
    expect(await readFile(disk.path, "latin1")).toContain("empty-0123456789ab.ext4");
  });
});
