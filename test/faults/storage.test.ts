import { execFileSync } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type AgentRunError, Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { mountLoopDisk } from "../support/loop-disk.ts";
import { ServerProcess } from "../support/server-process.ts";
import { accountOf } from "./host-account.ts";
import { ServedDirectory } from "./served-directory.ts";

const isRoot = process.getuid?.() === 0;
const anotherBuild = engineUnderTest === "gvisor" ? /another build of runsc/ : /another build of QEMU/;
const rootReason = "only root can mount a small disk";
const base = mkdtempSync(path.join(os.tmpdir(), "mitos-storage-"));
afterAll(() => rmSync(base, { recursive: true }));

async function failureOf(work: Promise<unknown>): Promise<AgentRunError> {
  return work.then(
    () => expect.unreachable("it should have failed"),
    (error: AgentRunError) => error,
  );
}

const diskFull = {
  code: "quota_exceeded",
  status: 429,
  errorCause: expect.stringMatching(/full/),
  remediation: expect.stringMatching(/^Free space/),
};

async function printed(sandbox: Sandbox, code: string): Promise<string> {
  return (await sandbox.runCode(code)).logs.stdout.join("").trim();
}

/** Leaves this much room on the disk of `dir`. @returns gives the rest back */
function fill(dir: string, leaveBytes: number): () => void {
  const { bavail, bsize } = statfsSync(dir);
  const file = path.join(dir, "filler");
  execFileSync("fallocate", ["-l", String(bavail * bsize - leaveBytes), file]);
  return () => rmSync(file);
}

/** For gVisor's sake in memory, which is fast. The memory of virtual machines is mapped from the data directory. */
function mountSmallDisk(dir: string): () => void {
  mkdirSync(dir);
  if (engineUnderTest !== "gvisor") return mountLoopDisk(dir, "768M");
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=128m", "tmpfs", dir]);
  return () => execFileSync("umount", [dir]);
}

describe("a data directory that is full", () => {
  const disk = path.join(base, "disk");
  let directory: ServedDirectory;
  let unmount: () => void;
  beforeAll(async () => {
    if (!isRoot) return;
    unmount = mountSmallDisk(disk);
    directory = await ServedDirectory.open({}, disk);
  });
  afterAll(async () => {
    if (!isRoot) return;
    await directory[Symbol.asyncDispose]();
    unmount();
  });

  it("refuses what needs room with a remedy, keeps every sandbox, starts again, and works when there is room again", async ({ skip }) => {
    skip(!isRoot, rootReason);
    const sandbox = await Sandbox.create({ id: "full", template: "python", baseUrl: directory.server.url });
    const sleeper = await Sandbox.create({ id: "asleep", template: "python", baseUrl: directory.server.url });
    await sandbox.runCode("x = 41");
    await sleeper.pause();
    const before = accountOf(directory.dataDir);

    // Room for records, not for a snapshot: the engine fails in the middle of writing it.
    const giveBack = fill(disk, 2 * 1024 * 1024);
    expect(await failureOf(sandbox.pause())).toMatchObject(diskFull);
    expect(await printed(sandbox, "print(x + 1)")).toBe("42");
    expect(accountOf(directory.dataDir).snapshots).toEqual(before.snapshots);
    expect(accountOf(directory.dataDir).partial).toEqual([]);

    // No room for anything.
    writeAll(path.join(disk, "rest"));
    for (const work of [
      () => sandbox.pause(),
      () => sandbox.fork(2),
      () => sleeper.resume(),
      () => Sandbox.create({ id: "none", template: "python", baseUrl: directory.server.url }),
    ]) {
      expect(await failureOf(work())).toMatchObject(diskFull);
    }
    const states = async () => (await directory.api.listSandboxes()).map(({ id, state }) => `${id} ${state}`);
    expect(await states()).toEqual(["full running", "asleep paused"]);
    expect(await printed(sandbox, "print(x + 1)")).toBe("42");

    // What cannot be refused is not lost either: a sandbox that ends while no record can be written has ended, and gives its room back.
    await directory.crash();
    expect(await states()).toEqual(["full running", "asleep paused"]);
    const again = new Sandbox({ id: "full", endpoint: directory.server.url });
    expect(await printed(again, "print(x + 1)")).toBe("42");
    await new Sandbox({ id: "asleep", endpoint: directory.server.url }).terminate();
    expect(await states()).toEqual(["full running"]);

    giveBack();
    rmSync(path.join(disk, "rest"));
    await again.pause();
    await again.resume();
    const [child] = await again.fork(1);
    expect(await printed(child!, "print(x + 1)")).toBe("42");
    await directory.crash();
    expect(await states()).toEqual(["full running", expect.stringMatching(/ running$/)]);
  });
});

/** Until the disk takes no byte more. */
function writeAll(file: string): void {
  const fd = openSync(file, "w");
  const block = Buffer.alloc(4096);
  try {
    for (;;) writeSync(fd, block);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
  } finally {
    closeSync(fd);
  }
}

describe("a /dev/shm that is full", () => {
  // The server gets a /dev/shm of its own, so that filling it harms nobody.
  const through = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o "size=$0" tmpfs /dev/shm && exec "$@"'];

  it("from the beginning: snapshots lie on the disk and everything works", async ({ skip }) => {
    skip(!isRoot, rootReason);
    await using directory = await ServedDirectory.open({ through: [...through, "1m"] });
    const sandbox = await Sandbox.create({ template: "base", baseUrl: directory.server.url });
    const children = await sandbox.fork(2);
    expect((await children[1]!.exec("hostname")).stdout).toBe(`${children[1]!.id}\n`);
    expect(readdirSync(path.join(directory.dataDir, "snapshots"))).toEqual([expect.stringMatching(/^template-/)]);
  });

  it("in the middle of a live fork: it goes on on the disk, and the parent with it", async ({ skip }) => {
    skip(!isRoot, rootReason);
    await using directory = await ServedDirectory.open({ through: [...through, "2g"] });
    const sandbox = await Sandbox.create({ template: "base", baseUrl: directory.server.url });
    await sandbox.exec("echo kept > kept");
    // Of the two kinds of room it has all the bytes that anybody can ask for in advance, and nearly no inodes.
    const shm = path.join("/proc", String(directory.server.child.pid), "root", "dev/shm");
    const { files, ffree } = statfsSync(shm);
    const enter = ["--mount", "--target", String(directory.server.child.pid)];
    execFileSync("nsenter", [...enter, "mount", "-o", `remount,nr_inodes=${files - ffree + 2}`, "/dev/shm"]);
    const children = await sandbox.fork(2);
    for (const each of [sandbox, ...children]) expect((await each.exec("cat kept")).stdout).toBe("kept\n");
    expect(directory.server.seen.err).toContain("tmpfs is full");
    expect(readdirSync(path.join(directory.dataDir, "snapshots"))).toEqual([]);
  });
});

describe("a paused sandbox whose snapshot was damaged", () => {
  let directory: ServedDirectory;
  let sandbox: Sandbox;
  let dir: string;
  beforeAll(async () => {
    directory = await ServedDirectory.open();
    sandbox = await Sandbox.create({ id: "saved", template: "python", baseUrl: directory.server.url });
    await sandbox.runCode("x = 41");
    await sandbox.pause();
    const root = path.join(directory.dataDir, "snapshots");
    dir = path.join(root, readdirSync(root).find((name) => name.startsWith("pause-"))!);
  });
  afterAll(() => directory[Symbol.asyncDispose]());

  /** What it has written to its disk is a virtual machine's saved state as well, and lies elsewhere. */
  function savedFiles(): string[] {
    const saved = readdirSync(dir).map((name) => path.join(dir, name));
    if (engineUnderTest === "gvisor") return saved;
    const { diskFiles } = JSON.parse(readFileSync(path.join(dir, "mitos.json"), "utf8"));
    return [...saved, ...Object.keys(diskFiles).map((name) => path.join(directory.dataDir, "microvm/disks", name))];
  }

  it.each([
    ["was cut short", (file: string) => truncateSync(file, statSync(file).size >> 1), /has \d+ bytes instead of \d+/],
    ["was removed", (file: string) => rmSync(file), /it is gone/],
    ["has one bit less", flipBit, /its content has changed/],
  ])("refuses to be resumed or forked while a file %s, and comes back with the file", async (_what, damage, cause) => {
    for (const file of savedFiles()) {
      const copy = path.join(base, path.basename(file));
      copyFileSync(file, copy);
      damage(file);
      const expected = {
        code: "snapshot_incompatible",
        status: 409,
        errorCause: expect.stringMatching(cause),
        remediation: expect.stringMatching(/backup/),
      };
      for (const work of [sandbox.resume(), sandbox.fork(1)]) {
        const failure = await failureOf(work);
        expect(failure).toMatchObject(expected);
        expect(failure.errorCause).toContain(file);
      }
      expect((await sandbox.info()).state).toBe("paused");
      copyFileSync(copy, file);
    }
    const [child] = await sandbox.fork(1);
    expect(await printed(child!, "print(x + 1)")).toBe("42");
    await child!.terminate();
  });

  it("refuses one that an earlier version or another build has saved", async () => {
    await directory.server.kill();
    const original = recordOf(directory.dataDir, "saved");
    for (const [change, cause] of [
      [{ files: undefined }, /earlier version of Mitos/],
      [{ requirements: { ...original.snapshot.requirements, engineBuild: "of 1999" } }, anotherBuild],
    ] as const) {
      writeRecord(directory.dataDir, { ...original, snapshot: { ...original.snapshot, ...change } });
      await directory.restart();
      const again = new Sandbox({ id: "saved", endpoint: directory.server.url });
      expect(await failureOf(again.resume())).toMatchObject({ code: "snapshot_incompatible", errorCause: expect.stringMatching(cause) });
      expect((await again.info()).state).toBe("paused");
      await directory.server.kill();
    }
    writeRecord(directory.dataDir, original);
    await directory.restart();
    sandbox = new Sandbox({ id: "saved", endpoint: directory.server.url });
    await sandbox.resume();
    expect(await printed(sandbox, "print(x + 1)")).toBe("42");
  });

  it("builds a template anew whose snapshot was damaged", async () => {
    const [name] = accountOf(directory.dataDir).snapshots.filter((found) => found.startsWith("template-"));
    const [root] = [path.join(directory.dataDir, "snapshots"), ...readdirSync("/dev/shm").map((found) => `/dev/shm/${found}`)].filter(
      (found) => statSync(found).isDirectory() && readdirSync(found).includes(name!),
    );
    const largest = readdirSync(path.join(root!, name!))
      .map((file) => path.join(root!, name!, file))
      .reduce((most, file) => (statSync(file).size > statSync(most).size ? file : most));
    flipBit(largest);
    const fresh = await Sandbox.create({ template: "python", baseUrl: directory.server.url });
    expect(await printed(fresh, "print(6 * 7)")).toBe("42");
    expect(accountOf(directory.dataDir).snapshots.filter((found) => found.startsWith("template-"))).not.toEqual([name]);
  });
});

function flipBit(file: string): void {
  const fd = openSync(file, "r+");
  const at = statSync(file).size >> 1;
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  byte[0]! ^= 1;
  writeSync(fd, byte, 0, 1, at);
  closeSync(fd);
}

interface Row {
  uid: number;
  id: string;
  snapshot: { requirements: object };
}

/** What the database of a server that is down says. */
function recordOf(dataDir: string, id: string): Row {
  const db = new DatabaseSync(path.join(dataDir, "mitos.db"));
  const rows = db
    .prepare("SELECT record FROM sandboxes")
    .all()
    .map(({ record }) => JSON.parse(String(record)) as Row);
  db.close();
  return rows.find((row) => row.id === id)!;
}

function writeRecord(dataDir: string, row: Row): void {
  const db = new DatabaseSync(path.join(dataDir, "mitos.db"));
  db.prepare("UPDATE sandboxes SET record = ? WHERE uid = ?").run(JSON.stringify(row), row.uid);
  db.close();
}

describe("mitos serve says why it does not start, what to do next, and exits with 1", () => {
  let dataDir: string;
  const mock = { args: ["--engine", "mock"] };
  const spoiled = async (spoil: (file: string) => void, options: Parameters<typeof ServerProcess.spawn>[1] = mock) => {
    dataDir = mkdtempSync(path.join(base, "data-"));
    // A database that a server has used.
    const first = await ServerProcess.start(dataDir, mock);
    await first.api.createTemplate("python");
    await first.kill();
    spoil(path.join(dataDir, "mitos.db"));
    return ServerProcess.refused(dataDir, options);
  };
  const readOnly = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'];

  it("when the database is no database", async () => {
    const ended = await spoiled((file) => {
      writeFileSync(file, "nonsense".repeat(2_000));
      rmSync(`${file}-wal`); // which would heal it
    });
    expect(ended).toMatchObject({
      code: 1,
      err: expect.stringMatching(
        /^error: the database is damaged\ncause: .*mitos\.db\nnext step: Move .*mitos\.db and mitos\.db-wal away/m,
      ),
    });
  });

  it("when a page of it was overwritten", async () => {
    const ended = await spoiled((file) => {
      const db = new DatabaseSync(file);
      db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
      db.close();
      const fd = openSync(file, "r+");
      for (let page = 1; page * 4096 < statSync(file).size; page += 1) writeSync(fd, Buffer.alloc(2048, 0x5a), 0, 2048, page * 4096);
    });
    expect(ended).toMatchObject({ code: 1, err: expect.stringMatching(/^error: the database is damaged\ncause: .*\nnext step: Move /m) });
  });

  it("when a record in it makes no sense", async () => {
    const ended = await spoiled((file) => {
      const db = new DatabaseSync(file);
      db.exec("INSERT INTO sandboxes (uid, record) VALUES (1, '{\"half')");
      db.close();
    });
    expect(ended).toMatchObject({ code: 1, err: expect.stringMatching(/^error: the database is damaged\ncause: .*\nnext step: Move /m) });
  });

  it("when a newer server has written it", async () => {
    const ended = await spoiled((file) => {
      const db = new DatabaseSync(file);
      db.exec("PRAGMA user_version = 99");
      db.close();
    });
    expect(ended).toMatchObject({
      code: 1,
      err: expect.stringMatching(
        /^error: the database was written by a newer server\ncause: .*schema 99.*\nnext step: Start the newer server/m,
      ),
    });
  });

  it("when another program has locked it", async () => {
    let db: DatabaseSync | undefined;
    const ended = await spoiled((file) => {
      db = new DatabaseSync(file);
      db.exec("BEGIN EXCLUSIVE");
    });
    db?.close();
    expect(ended).toMatchObject({
      code: 1,
      err: expect.stringMatching(/^error: another server uses this data directory\ncause: .*\nnext step: Stop that server/m),
    });
  });

  it("when the directory is read-only, or cannot be made", async ({ skip }) => {
    skip(!isRoot, rootReason);
    dataDir = mkdtempSync(path.join(base, "data-"));
    const ended = await ServerProcess.refused(dataDir, { ...mock, through: [...readOnly, dataDir] });
    expect(ended).toMatchObject({ code: 1, err: expect.stringMatching(/^error: .*\ncause: .*\nnext step: .*writable/m) });
    writeFileSync(path.join(dataDir, "file"), "");
    const below = await ServerProcess.refused(path.join(dataDir, "file", "data"), mock);
    expect(below).toMatchObject({ code: 1, err: expect.stringMatching(/^error: .*\ncause: .*\nnext step: /m) });
  });

  it("when its disk is full", async ({ skip }) => {
    skip(!isRoot, rootReason);
    const disk = mkdtempSync(path.join(base, "disk-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]);
    try {
      writeAll(path.join(disk, "rest"));
      const ended = await ServerProcess.refused(path.join(disk, "data"), mock);
      expect(ended).toMatchObject({
        code: 1,
        err: expect.stringMatching(/^error: the disk has no room for it now\ncause: .* is full\nnext step: Free space/m),
      });
    } finally {
      execFileSync("umount", [disk]);
    }
  });
});
