import type { SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Bench, ids, sandbox, template } from "../testing.ts";

const second = 1_000;
const minute = 60 * second;

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open({ poolSize: 3 });
});
afterEach(async () => {
  await bench[Symbol.asyncDispose]();
  expect(bench.driver.machines.size).toBe(0);
});

const [a, b] = ids("a", "b") as [SandboxId, SandboxId];

/** After a create: time in which it is filled up, until so many wait. */
async function filled(waiting: number): Promise<void> {
  bench.clock.advance(second);
  await expect.poll(() => bench.engine.counts().pool.waiting).toBe(waiting);
}

async function createAndFill(...names: string[]): Promise<void> {
  for (const name of names) await bench.engine.create(sandbox(name));
  await filled(Math.min(3, names.length));
}

describe("machines that wait", () => {
  it("none waits for a template that nobody has used", async () => {
    bench.clock.advance(second);
    expect(bench.engine.counts().pool).toEqual({ hits: 0, misses: 0, waiting: 0 });
    expect(bench.driver.restores).toBe(0);
  });

  it("a create after the first starts no machine", async () => {
    await createAndFill("a");
    const { restores } = bench.driver;
    await bench.engine.create(sandbox("b"));
    expect(bench.driver.restores).toBe(restores);
    expect(bench.engine.counts().pool).toEqual({ hits: 1, misses: 1, waiting: 0 });
    await filled(1);
    await bench.engine.terminate(b);
    expect(bench.engine.get(a).state).toBe("running");
    expect(bench.driver.machines.size).toBe(2);
  });

  it("as many wait as were missed, under the bound", async () => {
    await createAndFill("a", "b", "c", "d", "e");
    expect(bench.engine.counts().pool).toEqual({ hits: 0, misses: 5, waiting: 3 });
  });

  it("serve no create that has other resources, and do not count it", async () => {
    await createAndFill("a");
    await bench.engine.create(sandbox("b", { resources: { memSizeMiB: 256 } }));
    expect(bench.engine.counts().pool).toEqual({ hits: 0, misses: 1, waiting: 1 });
    await bench.engine.create(sandbox("c", { resources: { memSizeMiB: 512 } }));
    expect(bench.engine.counts().pool).toMatchObject({ hits: 1 });
  });

  it("are given back by a create that is refused", async () => {
    await createAndFill("a");
    await expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "conflict" });
    expect(bench.engine.counts().pool.waiting).toBe(1);
    await expect(bench.engine.create(sandbox("b"))).resolves.toMatchObject({ state: "running" });
  });

  it("are nobody's until they are woken: the machine of a sandbox is the one that it was made for", async () => {
    await createAndFill("a");
    const [waiting] = [...bench.driver.machines.keys()].slice(-1);
    await bench.engine.create(sandbox("b"));
    await bench.driver.machines.get(waiting as string)?.end("crashed");
    await expect.poll(() => bench.engine.list({ state: "failed" }).map(({ id }) => id)).toEqual([b]);
    expect(bench.engine.get(a).state).toBe("running");
  });

  it("leave no deadline of a create that failed to the next sandbox of its id", async () => {
    await createAndFill("a");
    bench.onOpen = () => {
      throw new Error("it does not answer");
    };
    await expect(bench.engine.create(sandbox("b", { timeoutSeconds: 5 }))).rejects.toMatchObject({ code: "internal" });
    bench.onOpen = () => {};
    await bench.engine.create(sandbox("b"));
    const ended: string[] = [];
    bench.engine.onEnd(({ id }) => ended.push(id));
    bench.clock.advance(6 * second);
    expect(ended).toEqual([]);
    expect(bench.engine.get(b).state).toBe("running");
  });

  it("that have ended while they waited are replaced, and nobody notices", async () => {
    await createAndFill("a");
    const [waiting] = [...bench.driver.machines.values()].slice(-1);
    await waiting?.end("killed");
    expect(bench.engine.counts().pool.waiting).toBe(0);
    await expect(bench.engine.create(sandbox("b"))).resolves.toMatchObject({ state: "running" });
    await filled(2);
  });

  it("that cannot become a sandbox are no reason for a create to fail", async () => {
    await createAndFill("a");
    let opened = 0;
    bench.onOpen = () => {
      opened += 1;
      if (opened === 1) throw new Error("it does not answer");
    };
    const machines = bench.driver.machines.size;
    await expect(bench.engine.create(sandbox("b"))).resolves.toMatchObject({ state: "running" });
    expect(opened).toBe(2);
    expect(bench.driver.machines.size).toBe(machines);
    const { machineId } = [...bench.driver.machines.values()].at(-1) ?? {};
    expect(bench.driver.specs.at(-1)?.machineId).toBe(machineId);
  });

  it("whose sandbox is terminated while it is adopted end with it", async () => {
    await createAndFill("a");
    const opening = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    bench.onOpen = async () => {
      opening.resolve();
      await go.promise;
    };
    const creating = bench.engine.create(sandbox("b"));
    await opening.promise;
    const terminating = bench.engine.terminate(b);
    go.resolve();
    await expect(creating).rejects.toMatchObject({ detail: { cause: expect.stringContaining("terminated") } });
    await terminating;
    expect(bench.driver.machines.size).toBe(1);
  });
});

describe("how many wait", () => {
  it("shrinks minute by minute, and to none for a template that nobody uses any more", async () => {
    await createAndFill("a", "b", "c");
    bench.clock.advance(minute);
    await expect.poll(() => bench.engine.counts().pool.waiting).toBe(2);
    bench.clock.advance(minute);
    bench.clock.advance(minute);
    await expect.poll(() => bench.engine.counts().pool.waiting).toBe(1);
    bench.clock.advance(10 * minute);
    await expect.poll(() => bench.driver.machines.size).toBe(3);
    expect(bench.engine.counts().pool.waiting).toBe(0);
  });

  it("is none while a failure to make one is new, and the next create tries again", async () => {
    bench.driver.onRestore = (count) => {
      if (count === 2) throw new Error("no more containers");
    };
    await bench.engine.create(sandbox("a"));
    bench.clock.advance(second);
    await expect.poll(() => bench.driver.restores).toBe(2);
    await bench.engine.create(sandbox("b"));
    await filled(1);
  });

  it("leaves most of the memory to sandboxes", async () => {
    bench.availableBytes = 300 * 1024 * 1024;
    await bench.engine.create(sandbox("a"));
    bench.clock.advance(second);
    bench.availableBytes = 64 * 1024 ** 3;
    await bench.engine.create(sandbox("b"));
    expect(bench.engine.counts().pool).toEqual({ hits: 0, misses: 2, waiting: 0 });
    await filled(2);
  });

  it("gives way to whoever needs the memory", async () => {
    await createAndFill("a", "b", "c");
    // Enough for one machine more if one that waits ends.
    bench.availableBytes = 20 * 1024 * 1024;
    await bench.engine.create(sandbox("d", { resources: { memSizeMiB: 256 } }));
    expect(bench.engine.counts().pool.waiting).toBe(2);
    await expect.poll(() => bench.driver.machines.size).toBe(3 + 2 + 1);
  });

  it("is bounded over all templates, and the one used last has them", async () => {
    await bench.engine.createTemplate(template("node"));
    await createAndFill("a", "b", "c");
    await bench.engine.create(sandbox("n", { template: template("node").id }));
    bench.clock.advance(second);
    const { restores } = bench.driver;
    await expect.poll(() => bench.driver.restores).toBe(restores + 1);
    await filled(3);
    await bench.engine.create(sandbox("m", { template: template("node").id }));
    expect(bench.engine.counts().pool.hits).toBe(1);
  });
});

describe("what waits ends", () => {
  it("with its template", async () => {
    await createAndFill("a");
    await bench.engine.terminate(a);
    await bench.engine.deleteTemplate(template("python").id);
    expect(bench.driver.machines.size).toBe(0);
  });

  it("with its server, also while one is being made", async () => {
    await createAndFill("a");
    const going = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    bench.driver.onRestore = async () => {
      going.resolve();
      await go.promise;
    };
    const creating = bench.engine.create(sandbox("b"));
    await creating;
    bench.clock.advance(second);
    await going.promise;
    const closing = bench.engine.close({ sandboxes: "keep" });
    go.resolve();
    await closing;
    expect([...bench.driver.machines.keys()]).toHaveLength(2);
    bench.driver.onRestore = () => {};
    await bench.reopen();
    expect(bench.engine.list().map(({ id }) => id)).toEqual([a, b]);
  });
});
