import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { toTemplateId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { BuildEvent } from "../actions.ts";
import { ManualClock, quiet } from "../testing.ts";
import { BuildLogs } from "./events.ts";

const id = toTemplateId("tool:1");

let dataDir: string;
let clock: ManualClock;
let logs: BuildLogs;
beforeEach(async () => {
  dataDir = await mkdtemp(path.join(tmpdir(), "mitos-events-"));
  clock = new ManualClock();
  logs = await BuildLogs.open(dataDir, quiet, clock);
});
afterEach(async () => {
  await logs.close();
  await rm(dataDir, { recursive: true, force: true });
});

function read(name = id): Promise<BuildEvent[]> {
  return Array.fromAsync(logs.read(name, { follow: false }));
}

const warning = (text: string) => ({ kind: "warning", text }) as const;
const textsOf = (events: readonly BuildEvent[]) => events.map((event) => (event.kind === "warning" ? event.text : event.kind));

describe("the log of a build", () => {
  it("is followed from its begin to its end, and read as far as it is", async () => {
    const log = logs.begin(id);
    log.add(warning("one"));
    const followed = Array.fromAsync(logs.read(id, { follow: true }));
    log.add(warning("two"));
    expect(textsOf(await read())).toEqual(["one", "two"]);
    log.end({ kind: "done", creationTimeMs: 5 });
    log.add(warning("too late"));
    expect(textsOf(await followed)).toEqual(["one", "two", "done"]);
  });

  it("is the same from the disk, for the next server too", async () => {
    const log = logs.begin(id);
    log.add(warning("größe"));
    log.end({ kind: "done", creationTimeMs: 5 });
    const told = await read();
    await log.written;
    expect(await read()).toEqual(told);
    logs = await BuildLogs.open(dataDir, quiet, clock);
    expect(await read()).toEqual(told);
  });

  it("takes the place of the one before, and leaves that of a name that only looks alike", async () => {
    for (const [name, text] of [
      [id, "first"],
      [toTemplateId("tool-1"), "other"],
      [id, "second"],
    ] as const) {
      const log = logs.begin(name);
      log.add(warning(text));
      log.end({ kind: "done", creationTimeMs: 1 });
    }
    await logs.close();
    expect(textsOf(await read())).toEqual(["second", "done"]);
    expect(textsOf(await read(toTemplateId("tool-1")))).toEqual(["other", "done"]);
    expect(await readdir(path.join(dataDir, "builds"))).toHaveLength(2);
  });

  it("is left by a follower who leaves", async () => {
    const log = logs.begin(id);
    const reader = new AbortController();
    const followed = Array.fromAsync(logs.read(id, { follow: true }, reader.signal));
    reader.abort();
    await expect(followed).rejects.toMatchObject({ code: "canceled" });
    log.end({ kind: "done", creationTimeMs: 1 });
  });

  it("keeps progress of a layer now and then, and every change of its state, but tells all of it", () => {
    const log = logs.begin(id);
    const heard: BuildEvent[] = [];
    log.listen((event) => heard.push(event));
    const layer = (state: "downloading" | "done", doneBytes: number) =>
      log.add({ kind: "layer", digest: `sha256:${"0".repeat(64)}`, state, doneBytes, totalBytes: 100 });
    for (let bytes = 0; bytes < 100; bytes += 1) layer("downloading", bytes);
    clock.advance(1_000);
    layer("downloading", 99);
    layer("done", 100);
    expect(heard).toHaveLength(102);
    expect(log.soFar().map((event) => event.kind === "layer" && [event.state, event.doneBytes])).toEqual([
      ["downloading", 0],
      ["downloading", 99],
      ["done", 100],
    ]);
    log.end({ kind: "done", creationTimeMs: 1 });
  });

  it("ends, also when it is too long to be kept", () => {
    const log = logs.begin(id);
    const text = "x".repeat(1024 * 1024);
    for (let count = 0; count < 20; count += 1) log.add(warning(text));
    log.end({ kind: "done", creationTimeMs: 1 });
    const kept = textsOf(log.soFar());
    expect(kept.filter((each) => each === text)).toHaveLength(16);
    expect(kept.slice(-2)).toEqual([expect.stringContaining("the rest is not kept"), "done"]);
  });

  it("ends with its server, whatever its build does", async () => {
    const log = logs.begin(id);
    await logs.close();
    log.end({ kind: "done", creationTimeMs: 1 });
    expect(await read()).toEqual([expect.objectContaining({ kind: "failed", code: "unavailable" })]);
  });

  it("that cannot be read is none", async () => {
    const log = logs.begin(id);
    log.end({ kind: "done", creationTimeMs: 1 });
    await log.written;
    const [name] = await readdir(path.join(dataDir, "builds"));
    for (const content of ["", "not json\n", '{"id":"another"}\n']) {
      await writeFile(path.join(dataDir, "builds", String(name)), content);
      await expect(read()).rejects.toMatchObject({ code: "not_found" });
    }
  });

  it("goes when it is old and its template is gone", async () => {
    for (const name of ["a", "b"]) logs.begin(toTemplateId(name)).end({ kind: "done", creationTimeMs: 1 });
    await logs.close();
    expect(await logs.collect(new Set([toTemplateId("a")]), Number.MAX_SAFE_INTEGER)).toBe(0);
    clock.advance(60_000);
    expect(await logs.collect(new Set([toTemplateId("a")]), 1_000)).toBeGreaterThan(0);
    await expect(read(toTemplateId("b"))).rejects.toMatchObject({ code: "not_found" });
    expect(textsOf(await read(toTemplateId("a")))).toEqual(["done"]);
  });

  it("stays when a build of that name begins while old ones are removed", async () => {
    const again = toTemplateId("again");
    logs.begin(again).end({ kind: "done", creationTimeMs: 1 });
    await logs.close();
    clock.advance(60_000);
    const collected = logs.collect(new Set(), 1_000);
    const log = logs.begin(again);
    await collected;
    log.add(warning("new"));
    log.end({ kind: "done", creationTimeMs: 2 });
    await log.written;
    expect(textsOf(await read(again))).toEqual(["new", "done"]);
  });
});
