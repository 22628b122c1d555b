import type { BuildEvent } from "@mitos/engine";
import { describe, expect, it } from "vitest";
import { collect } from "../testing/harness.ts";
import { EventQueue } from "./build-events.ts";

const log = (text: string): BuildEvent => ({ atMs: 1, kind: "log", step: 0, stream: "stdout", text });
const layer = (digest: string, doneBytes: number): BuildEvent => ({
  atMs: 1,
  kind: "layer",
  digest: `sha256:${digest}`,
  state: "downloading",
  doneBytes,
  totalBytes: 9,
});

describe("a queue of events", () => {
  it("keeps their order, and ends when they do", async () => {
    const queue = new EventQueue();
    queue.push(log("a"));
    const all = collect(queue);
    queue.push(log("b"));
    queue.end();
    expect(await all).toEqual([log("a"), log("b")]);
  });

  it("keeps only the last progress of each layer", async () => {
    const queue = new EventQueue();
    for (let bytes = 0; bytes < 9; bytes += 1) for (const digest of ["a", "b"]) queue.push(layer(digest, bytes));
    queue.end();
    expect(await collect(queue)).toEqual([layer("a", 8), layer("b", 8)]);
  });

  it.each([
    ["lines", "x", 1000],
    ["bytes", "x".repeat(64 * 1024), 16],
  ])("holds so many %s of output and no more, and says in their place what is missing", async (_what, text, max) => {
    const queue = new EventQueue();
    for (let n = 0; n < max + 7; n += 1) queue.push(log(text));
    queue.push(layer("a", 1));
    queue.end();
    const events = await collect(queue);
    expect(events.map(({ kind }) => kind)).toEqual([...Array(max).fill("log"), "warning", "layer"]);
    expect(events.at(-2)).toMatchObject({ text: expect.stringMatching(/^7 lines of output were left out/) });
  });

  it("takes output again when some of it was read", async () => {
    const queue = new EventQueue();
    for (let n = 0; n < 1001; n += 1) queue.push(log("x"));
    const reading = queue[Symbol.asyncIterator]();
    for (let n = 0; n < 2; n += 1) await reading.next();
    queue.push(log("y"));
    queue.end();
    expect((await collect(reading)).slice(-2)).toMatchObject([{ kind: "warning" }, { text: "y" }]);
  });
});
