/** What a server tells about itself, with real sandboxes. */

import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MeteringReport } from "../../packages/server/src/metering.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const mebibyte = 1024 * 1024;

let live: LiveServer;
let parent: Sandbox;
let child: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  parent = await live.create({ id: "obs-parent" });
  child = (await parent.fork())[0]!;
});
afterAll(() => live.close());

async function metering(): Promise<MeteringReport> {
  return (await (await fetch(`${live.url}/v1/metering`, { headers: { Connection: "close" } })).json()) as MeteringReport;
}

const rowOf = (report: MeteringReport, { id }: Sandbox) => report.Sandboxes.find(({ ID }) => ID === id)!;

describe("GET /v1/metering", () => {
  it("counts what two sandboxes of a template share once, and its sums add up", async () => {
    const report = await metering();
    expect(report.Sandboxes.map(({ ID }) => ID)).toEqual([child.id, parent.id].sort());
    const [a, b] = report.Sandboxes as [MeteringReport["Sandboxes"][0], MeteringReport["Sandboxes"][0]];
    for (const row of [a, b]) {
      expect(row.MemoryUnique).toBeGreaterThan(10 * mebibyte);
      // The programs that run a sandbox alone are more than that.
      expect(row.MemoryShared).toBeGreaterThan(10 * mebibyte);
      expect(row.MemoryShared).toBeLessThan(100 * mebibyte);
    }
    const [template] = report.Templates;
    expect(template).toMatchObject({ ForkCount: 2, SharedOnce: Math.max(a.MemoryShared, b.MemoryShared) });
    expect(report.TotalUnique).toBe(a.MemoryUnique + b.MemoryUnique);
    expect(report.UsedCoWAware).toBe(report.TotalUnique + template!.SharedOnce);
    expect(report.UsedNaive - report.UsedCoWAware).toBe(Math.min(a.MemoryShared, b.MemoryShared));
    expect(template!.DiskSharedOnce).toBeGreaterThan(mebibyte);
    expect(report.DiskUsedCoWAware).toBe(template!.DiskSharedOnce);
    expect(report.Stale).toEqual([]);
  });

  it("shows 100 MB that a sandbox allocates as its own, and not as its sibling's", async () => {
    const before = await metering();
    await child.runCode("block = b'x' * 100_000_000");
    await until(
      "the memory shows",
      async () => rowOf(await metering(), child).MemoryUnique > rowOf(before, child).MemoryUnique + 95_000_000,
    );
    const after = await metering();
    expect(rowOf(after, child).MemoryUnique).toBeGreaterThan(100_000_000);
    expect(rowOf(after, parent).MemoryUnique).toBeLessThan(rowOf(before, parent).MemoryUnique + 50_000_000);
  });

  it("shows a paused sandbox's snapshot as its disk, and no memory", async () => {
    await child.pause();
    await until("the pause shows", async () => rowOf(await metering(), child).MemoryUnique === 0);
    const { DiskUnique, MemoryShared } = rowOf(await metering(), child);
    expect(MemoryShared).toBe(0);
    expect(DiskUnique).toBeGreaterThan(100_000_000);
    await child.resume();
  });
});
