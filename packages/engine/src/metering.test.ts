import { rename } from "node:fs/promises";
import { toSandboxId } from "@mitos/protocol";
import { expect, it, vi } from "vitest";
import type { Metering } from "./driver.ts";
import { Bench, sandbox } from "./testing.ts";

it("reports every sandbox that is alive: a running one's memory, a paused one's snapshot", async () => {
  await using bench = await Bench.open();
  await bench.engine.create(sandbox("runs"));
  await bench.engine.create(sandbox("sleeps"));
  await bench.engine.pause(toSandboxId("sleeps"));
  await bench.engine.create(sandbox("gone"));
  await bench.engine.terminate(toSandboxId("gone"));
  const { sandboxes, templates } = await bench.engine.meterAll();
  const bytes = 1024 * 1024;
  expect(sandboxes).toMatchObject([
    { id: "runs", templateId: "python", memoryBytes: bytes, diskBytes: 0, isStale: false },
    { id: "sleeps", templateId: "python", memoryBytes: 0, diskBytes: bytes, isStale: false },
  ]);
  expect(templates).toEqual([{ id: "python", snapshotBytes: bytes }]);
});

it("reports the last known figures of a machine that does not answer, and does not ask it twice", async () => {
  await using bench = await Bench.open();
  await bench.engine.create(sandbox("hangs"));
  const [machine] = [...bench.driver.machines.values()];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  try {
    const first = await bench.engine.meterAll();
    expect(first.sandboxes).toMatchObject([{ id: "hangs", isStale: false }]);
    const meter = vi.spyOn(machine!, "meter").mockImplementation(() => new Promise<Metering>(() => {}));
    for (const _round of [1, 2]) {
      vi.advanceTimersByTime(1500);
      const report = bench.engine.meterAll();
      await vi.advanceTimersByTimeAsync(2500);
      expect((await report).sandboxes).toMatchObject([{ id: "hangs", memoryBytes: 1024 * 1024, isStale: true }]);
    }
    expect(meter).toHaveBeenCalledTimes(1);
  } finally {
    vi.useRealTimers();
  }
});

it("measures once for all who ask within a second", async () => {
  await using bench = await Bench.open();
  await bench.engine.create(sandbox("asked"));
  const meter = vi.spyOn([...bench.driver.machines.values()][0]!, "meter");
  await Promise.all([bench.engine.meterAll(), bench.engine.meterAll()]);
  await bench.engine.meterAll();
  expect(meter).toHaveBeenCalledTimes(1);
});

it("counts snapshots with their bytes, by what they were taken for", async () => {
  await using bench = await Bench.open();
  await bench.engine.create(sandbox("parent"));
  await bench.engine.fork({ source: toSandboxId("parent"), ids: [toSandboxId("child")], inheritSecrets: false, env: {} });
  await bench.engine.pause(toSandboxId("child"));
  const one = { count: 1, bytes: 1024 * 1024 };
  expect(bench.engine.counts()).toMatchObject({ snapshots: { template: one, fork: one, pause: one }, linksLost: 0 });
});

it("is not ready while the data directory takes no writes", async () => {
  await using bench = await Bench.open();
  await rename(bench.dataDir, `${bench.dataDir}.away`);
  expect(await bench.engine.unreadiness()).toBe("the data directory cannot be written to (ENOENT)");
  await rename(`${bench.dataDir}.away`, bench.dataDir);
  await bench.engine.close({ sandboxes: "end" });
  expect(await bench.engine.unreadiness()).toBe("the engine is closing");
  await bench.reopen();
  expect(await bench.engine.unreadiness()).toBeNull();
});
