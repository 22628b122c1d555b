import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { type EndSignals, follow } from "./follow.ts";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

function signals(): EndSignals & { leave(reason: unknown): void } {
  const client = new AbortController();
  return { client: client.signal, shutdown: new AbortController().signal, leave: (reason) => client.abort(reason) };
}

describe("a followed stream", () => {
  it("holds nothing of the items that have passed, however long it goes on", async () => {
    async function* source() {
      for (;;) yield { item: true };
    }
    const stream = follow(source(), signals());
    const passed: WeakRef<object>[] = [];
    for (let index = 0; index < 100; index += 1) passed.push(new WeakRef((await stream.next()).value as object));
    // A macrotask: until then every WeakRef keeps its object.
    await new Promise(setImmediate);
    collectGarbage();
    expect(passed.slice(0, 90).filter((item) => item.deref())).toEqual([]);
    await stream.return();
  });

  it("ends while its source is silent, and leaves the source", async () => {
    let left = false;
    const source: AsyncIterable<never> = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise(() => {}),
        return: async () => {
          left = true;
          return { done: true, value: undefined };
        },
      }),
    };
    const at = signals();
    const next = follow(source, at).next();
    at.leave(new Error("the client has left"));
    await expect(next).rejects.toThrow("the client has left");
    expect(left).toBe(true);
  });

  it("ends between two items, too", async () => {
    async function* source() {
      yield 1;
      yield 2;
    }
    const at = signals();
    const stream = follow(source(), at);
    expect((await stream.next()).value).toBe(1);
    at.leave(new Error("the client has left"));
    await expect(stream.next()).rejects.toThrow("the client has left");
  });
});
