import { describe, expect, it } from "vitest";
import { onlyOn } from "../../support/only-on.ts";
import { smallScale } from "../scale.ts";
import { measurePaths } from "./measure.ts";
import { partsOf } from "./parts.ts";
import { drawPaths, tableOfPaths, totalOf } from "./picture.ts";
import type { Span } from "./trace-sink.ts";

/** @param at - its start and its end, in ms */
function span(spanId: string, name: string, at: readonly [number, number], more: Partial<Span> = {}): Span {
  const [start, end] = at.map((ms) => String(ms * 1_000_000)) as [string, string];
  return { name, traceId: "t", spanId, startTimeUnixNano: start, endTimeUnixNano: end, ...more };
}

describe("the parts of a request", () => {
  it("are its spans without those in them, and what its client waited for beside it", () => {
    const trace = [
      span("1", "POST /v1/fork", [2, 30]),
      span("3", "engine.restore", [10, 20], { parentSpanId: "2" }),
      span("2", "engine.create", [4, 28], { parentSpanId: "1" }),
      span("4", "engine.adopt", [21, 27], { parentSpanId: "2" }),
    ];
    expect(partsOf(33, trace)).toEqual([
      { what: "client, HTTP and server", ms: 9 },
      { what: "engine", ms: 8 },
      { what: "runsc restores", ms: 10 },
      { what: "awake, and adopted", ms: 6 },
    ]);
  });

  it("tell of a program when it had been started", () => {
    const events = [{ name: "started", timeUnixNano: "9000000" }];
    const trace = [span("1", "link.Exec", [4, 20]), span("2", "agent.Exec", [5, 19], { parentSpanId: "1", events })];
    expect(partsOf(20, trace)).toEqual([
      { what: "client, HTTP and server", ms: 4 },
      { what: "way to the agent and back", ms: 2 },
      { what: "the agent starts a program", ms: 4 },
      { what: "it runs, and its end is told", ms: 10 },
    ]);
  });
});

describe("a small profile", () => {
  onlyOn("gvisor", "how machines start elsewhere is another matter");

  it("finds the parts of every hot path, and draws them", async () => {
    const paths = await measurePaths({ rounds: 1, warmUp: smallScale.warmUp, say: () => {} });
    expect(paths).toHaveLength(5);
    const [waiting, nothing, exec, code, fork] = paths.map(({ parts }) => parts.map(({ what }) => what));
    expect(waiting).not.toContain("runsc restores");
    expect(waiting).toContain("awake, and adopted");
    expect(nothing).toContain("runsc restores");
    expect(exec).toContain("the agent starts a program");
    expect(code).toContain("agent and kernel");
    expect(fork).toEqual(expect.arrayContaining(["runsc saves the parent", "runsc restores", "awake, and adopted"]));
    const table = tableOfPaths(paths);
    const picture = drawPaths(paths);
    for (const path of paths) {
      expect(totalOf(path), path.what).toBeGreaterThan(0);
      expect(table).toContain(`| ${path.what} | `);
      expect(picture).toContain(path.what);
    }
    expect(table + picture).not.toMatch(/NaN|undefined|Infinity/);
  });
});
