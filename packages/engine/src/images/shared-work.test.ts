import { describe, expect, it } from "vitest";
import { SharedWork } from "./shared-work.ts";

interface Step {
  readonly about: string;
  readonly n: number;
}

/** Work that a test ends, and what has become of it. */
function manual() {
  const works: { signal: AbortSignal; emit: (step: Step) => void; resolve: (value: string) => void; reject: (error: Error) => void }[] = [];
  const shared = new SharedWork<string, Step>(({ about }) => about);
  const work = (signal: AbortSignal, emit: (step: Step) => void) =>
    new Promise<string>((resolve, reject) => {
      works.push({ signal, emit, resolve, reject });
    });
  return { works, shared, work };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("work that several ask for", () => {
  it("is done once for one key, and again when it is over", async () => {
    const { works, shared, work } = manual();
    const both = [shared.run("a", {}, work), shared.run("a", {}, work), shared.run("b", {}, work)];
    await turn();
    expect(works).toHaveLength(2);
    works[0]?.resolve("one");
    works[1]?.resolve("other");
    expect(await Promise.all(both)).toEqual(["one", "one", "other"]);
    const again = shared.run("a", {}, work);
    await turn();
    works[2]?.resolve("again");
    expect(await again).toBe("again");
  });

  it("fails for all of them", async () => {
    const { works, shared, work } = manual();
    const both = [shared.run("a", {}, work), shared.run("a", {}, work)];
    await turn();
    works[0]?.reject(new Error("no"));
    expect(await Promise.allSettled(both)).toMatchObject([{ reason: { message: "no" } }, { reason: { message: "no" } }]);
  });

  it("goes on for the others when one gives up", async () => {
    const { works, shared, work } = manual();
    const abort = new AbortController();
    const leaving = shared.run("a", { signal: abort.signal }, work);
    const staying = shared.run("a", {}, work);
    await turn();
    abort.abort();
    await expect(leaving).rejects.toMatchObject({ code: "canceled" });
    expect(works[0]?.signal.aborted).toBe(false);
    works[0]?.resolve("done");
    expect(await staying).toBe("done");
  });

  it("is given up when all have, the last of whom is told when it has stopped, and only then begun anew by the next", async () => {
    const { works, shared, work } = manual();
    const abort = new AbortController();
    let told = 0;
    const leaving = [1, 2].map(() => shared.run("a", { signal: abort.signal }, work).catch(() => (told += 1)));
    await turn();
    abort.abort();
    await leaving[0];
    expect(works[0]?.signal.aborted).toBe(true);
    expect(told).toBe(1);
    const next = shared.run("a", {}, work);
    await turn();
    expect(works).toHaveLength(1);
    works[0]?.reject(new Error("stopped"));
    await leaving[1];
    await expect.poll(() => works.length).toBe(2);
    works[1]?.resolve("anew");
    expect(await next).toBe("anew");
  });

  it("tells each of them how it goes, late ones the last about each thing first", async () => {
    const { works, shared, work } = manual();
    const [early, late]: [Step[], Step[]] = [[], []];
    const first = shared.run("a", { onEvent: (step) => early.push(step) }, work);
    await turn();
    works[0]?.emit({ about: "x", n: 1 });
    works[0]?.emit({ about: "y", n: 1 });
    works[0]?.emit({ about: "x", n: 2 });
    const second = shared.run("a", { onEvent: (step) => late.push(step) }, work);
    await turn();
    works[0]?.emit({ about: "y", n: 2 });
    works[0]?.resolve("");
    await Promise.all([first, second]);
    expect(early.map(({ about, n }) => `${about}${n}`)).toEqual(["x1", "y1", "x2", "y2"]);
    expect(late.map(({ about, n }) => `${about}${n}`)).toEqual(["x2", "y1", "y2"]);
  });

  it("is not begun for a caller who has given up already", async () => {
    const { works, shared, work } = manual();
    await expect(shared.run("a", { signal: AbortSignal.abort() }, work)).rejects.toMatchObject({ code: "canceled" });
    await turn();
    expect(works).toHaveLength(0);
  });
});
