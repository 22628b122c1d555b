import { readFileSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { collect, get, post, stream, streamAll, useServer } from "./testing/harness.ts";

const at = useServer();

/** Value of a series, 0 when there is none. */
async function series(name: string): Promise<number> {
  const { text } = await get(at, "/metrics");
  const line = text.split("\n").find((candidate) => candidate.startsWith(`${name} `));
  return line ? Number(line.slice(name.length + 1)) : 0;
}

it("counts what runs in sandboxes by its outcome", async () => {
  for (const command of ["true", "timeout", "bogus", "gated"]) {
    if (command === "gated") at.runtime.gate.resolve();
    await streamAll(at, "ExecStream", [{ command }]);
  }
  const count = (outcome: string) => series(`mitos_exec_duration_seconds_count{outcome="${outcome}"}`);
  expect(await Promise.all(["ok", "error", "timeout", "failed", "canceled"].map(count))).toEqual([1, 1, 1, 1, 0]);
});

it("counts a program whose client left as canceled", async () => {
  const client = new AbortController();
  const { frames } = await stream(at, "ExecStream", [{ command: "forever" }], { signal: client.signal });
  await frames.next();
  client.abort();
  await collect(frames).catch(() => {});
  await expect.poll(() => series('mitos_exec_duration_seconds_count{outcome="canceled"}')).toBe(1);
});

it("counts runs of code, pauses and resumes", async () => {
  await streamAll(at, "RunCodeStream", [{ code: "1" }]);
  await post(at, "/v1/pause", { sandbox: "sb-1" });
  await post(at, "/v1/resume", { sandbox: "sb-1" });
  expect(await series('mitos_run_code_duration_seconds_count{outcome="ok"}')).toBe(1);
  expect(await series("mitos_pause_duration_seconds_count")).toBe(1);
  expect(await series("mitos_resume_duration_seconds_count")).toBe(1);
});

it("shows the sums of the metering report, and what each sandbox has as long as it is there", async () => {
  await post(at, "/v1/fork", { id: "sb-2", template: "python" });
  expect(await series("mitos_memory_unique_bytes")).toBe(200);
  expect(await series("mitos_memory_shared_bytes")).toBe(10);
  expect(await series("mitos_cow_memory_savings_bytes")).toBe(10);
  expect(await series("mitos_metered_disk_bytes")).toBe(1000);
  const ofSandbox = 'mitos_sandbox_memory_unique_bytes{sandbox="sb-2",template="python"}';
  expect(await series(ofSandbox)).toBe(100);
  at.engine.sandboxes.delete("sb-2");
  expect((await get(at, "/metrics")).text).not.toContain(ofSandbox);
});

it("shows what the engine has counted", async () => {
  expect(await series('mitos_snapshot_bytes_total{kind="template"}')).toBe(1000);
  expect(await series("mitos_links_lost_total")).toBe(3);
  expect(await series("mitos_egress_denied_total")).toBe(4);
  expect(await series('mitos_pool_starts_total{result="hit"}')).toBe(5);
  expect(await series('mitos_pool_creates_total{result="hit"}')).toBe(6);
  expect(await series("mitos_pool_machines")).toBe(3);
  expect(await series('mitos_builds_total{outcome="ok"}')).toBe(7);
  expect(await series('mitos_build_steps_total{result="cached"}')).toBe(8);
  expect(await series('mitos_build_info{version="test",isolation="mock"}')).toBe(1);
});

it("answers the metering report with the keys of its published shape", async () => {
  const { json, headers } = await get(at, "/v1/metering");
  expect(headers["content-type"]).toBe("application/json");
  expect(json.Sandboxes).toEqual([
    {
      ID: "sb-1",
      Template: "python",
      MemoryUnique: 100,
      MemoryShared: 10,
      DiskUnique: 0,
      DiskShared: 1000,
      EgressBytes: 0,
      GPUCount: 0,
      GPUSeconds: 0,
    },
  ]);
  expect(json.Templates).toEqual([{ Template: "python", ForkCount: 1, SharedOnce: 10, DiskSharedOnce: 1000 }]);
});

it("is not ready while the engine says that it cannot start machines, and says why", async () => {
  at.engine.problem = "the data directory cannot be written to (ENOSPC)";
  const { status, text } = await get(at, "/readyz");
  expect([status, text]).toEqual([503, "the data directory cannot be written to (ENOSPC)\n"]);
});

it("docs/observability.md lists exactly the metrics that there are", async () => {
  const { text } = await get(at, "/metrics");
  const there = [...text.matchAll(/^# TYPE (mitos_\w+) (\w+)$/gm)].map(([, name, type]) => `${name} ${type}`);
  const page = readFileSync(path.resolve(import.meta.dirname, "../../../docs/observability.md"), "utf8");
  const documented = [...page.matchAll(/^\| `(mitos_\w+)(?:\{[^}]*\})?`\s*\| (\w+)\s*\|/gm)].map(([, name, type]) => `${name} ${type}`);
  expect(documented.sort()).toEqual(there.sort());
  expect(text).toContain("nodejs_eventloop_lag_seconds");
});
