import type { ServerContext } from "@modelcontextprotocol/server";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { progressOf } from "./progress.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function context(progressToken?: string) {
  const sent: { params: Record<string, unknown> }[] = [];
  const notify = async (notification: never) => void sent.push(notification);
  const mcpReq = { notify, ...(progressToken === undefined ? {} : { _meta: { progressToken } }) };
  return { sent, context: { mcpReq } as unknown as ServerContext };
}

describe("progress", () => {
  it("is told to nobody who has not asked for it", () => {
    const { sent, context: silent } = context();
    using progress = progressOf(silent);
    progress.start(30);
    progress.printed("line");
    vi.advanceTimersByTime(60_000);
    expect(sent).toEqual([]);
  });

  it("is a sign of life every five seconds while nothing is printed, and ever increasing", () => {
    const { sent, context: asking } = context("t");
    using progress = progressOf(asking);
    progress.start(30);
    vi.advanceTimersByTime(15_000);
    expect(sent.map(({ params }) => params)).toEqual([5, 10, 15].map((seconds) => ({ progressToken: "t", progress: seconds, total: 30 })));
  });

  it("carries the last line, at most twice a second", () => {
    const { sent, context: asking } = context("t");
    using progress = progressOf(asking);
    progress.start(30);
    for (let index = 0; index < 20; index++) {
      progress.printed(`line ${index}\n`);
      vi.advanceTimersByTime(100);
    }
    expect(sent.map(({ params }) => params.message)).toEqual(["line 0", "line 5", "line 10", "line 15"]);
    expect(sent.map(({ params }) => params.progress)).toEqual([0, 0.5, 1, 1.5]);
  });

  it("ends with the call", () => {
    const { sent, context: asking } = context("t");
    {
      using progress = progressOf(asking);
      progress.start(30);
    }
    vi.advanceTimersByTime(60_000);
    expect(sent).toEqual([]);
  });
});
