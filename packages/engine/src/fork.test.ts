import { setTimeout as sleep } from "node:timers/promises";
import type { SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { SandboxTree } from "./actions.ts";
import { startsAtOnce } from "./core.ts";
import { Bench, ids, sandbox } from "./testing.ts";

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(async () => {
  await bench[Symbol.asyncDispose]();
  expect(bench.driver.machines.size).toBe(0);
});

const [parent, one, two, three] = ids("parent", "one", "two", "three") as [SandboxId, SandboxId, SandboxId, SandboxId];
const plain = { source: parent, inheritSecrets: false, env: {} };

describe("fork", () => {
  it("makes running children of one snapshot, with their parent on record, and removes the snapshot", async () => {
    await bench.engine.create(sandbox("parent", { metadata: { team: "a" } }));
    const foldersBefore = await bench.snapshotFolders();
    let snapshots = 0;
    bench.driver.onSnapshot = () => {
      snapshots += 1;
    };
    const result = await bench.engine.fork({ ...plain, ids: [one, two, three] });
    expect(result.children.map(({ id, state, parentId }) => ({ id, state, parentId }))).toEqual(
      [one, two, three].map((id) => ({ id, state: "running", parentId: "parent" })),
    );
    expect(result.children[0]).toMatchObject({ templateId: "python", metadata: { team: "a" } });
    expect(result.pausedMs).toBeGreaterThan(0);
    expect(snapshots).toBe(1);
    expect(bench.engine.get(parent).children).toEqual([one, two, three]);
    expect(await bench.snapshotFolders()).toEqual(foldersBefore);
  });

  it("starts none and leaves the parent running when the third of five children fails", async () => {
    await bench.engine.create(sandbox("parent"));
    const machines = bench.driver.machines.size;
    const folders = await bench.snapshotFolders();
    const before = bench.driver.restores;
    bench.driver.onRestore = (count) => {
      if (count === before + 3) throw new Error("no more containers");
    };
    await expect(bench.engine.fork({ ...plain, ids: ids("c1", "c2", "c3", "c4", "c5") })).rejects.toMatchObject({
      code: "internal",
      detail: { cause: expect.stringContaining("no more containers") },
    });
    expect(bench.engine.list().map(({ id }) => id)).toEqual(["parent"]);
    expect(bench.engine.get(parent)).toMatchObject({ state: "running", children: [] });
    expect(bench.driver.machines.size).toBe(machines);
    expect(await bench.snapshotFolders()).toEqual(folders);
    bench.driver.onRestore = () => {};
    await expect(bench.engine.fork({ ...plain, ids: ids("c1") })).resolves.toMatchObject({ children: [{ id: "c1" }] });
  });

  it("lets the parent run on when it cannot be saved", async () => {
    await bench.engine.create(sandbox("parent"));
    bench.driver.onSnapshot = () => {
      throw new Error("disk full");
    };
    await expect(bench.engine.fork({ ...plain, ids: [one] })).rejects.toMatchObject({ code: "internal" });
    bench.driver.onSnapshot = () => {};
    expect(bench.engine.list().map(({ id }) => id)).toEqual(["parent"]);
    await expect(bench.engine.fork({ ...plain, ids: [one] })).resolves.toBeDefined();
  });

  it("reserves memory for all children before the parent stands still", async () => {
    await bench.engine.create(sandbox("parent"));
    bench.availableBytes = 4 * 1024 * 1024;
    let saved = false;
    bench.driver.onSnapshot = () => {
      saved = true;
    };
    await expect(bench.engine.fork({ ...plain, ids: ids("c1", "c2", "c3", "c4") })).rejects.toMatchObject({
      code: "quota_exceeded",
      detail: { retryAfterMs: expect.any(Number) },
    });
    expect(saved).toBe(false);
    expect(bench.engine.list()).toHaveLength(1);
  });

  it("refuses a parent that was given secrets, also through its children, unless they may be inherited", async () => {
    await bench.engine.create(sandbox("parent", { secrets: { TOKEN: "s3cret" } }));
    await expect(bench.engine.fork({ ...plain, ids: [one] })).rejects.toMatchObject({ code: "secret_inheritance_denied" });
    await bench.engine.fork({ ...plain, ids: [one], inheritSecrets: true });
    await expect(bench.engine.fork({ ...plain, source: one, ids: [two] })).rejects.toMatchObject({ code: "secret_inheritance_denied" });
  });

  it("forks a paused sandbox from its pause, which still resumes", async () => {
    await bench.engine.create(sandbox("parent"));
    await bench.engine.pause(parent);
    const { pausedMs, children } = await bench.engine.fork({ ...plain, ids: [one, two] });
    expect(pausedMs).toBe(0);
    expect(children).toHaveLength(2);
    expect(bench.engine.get(parent).state).toBe("paused");
    await bench.engine.resume(parent);
    expect(bench.engine.get(parent).state).toBe("running");
  });

  it("gives a child what remains of its parent's time unless asked otherwise", async () => {
    await bench.engine.create(sandbox("parent", { timeoutSeconds: 100 }));
    const { deadlineMs } = bench.engine.get(parent);
    bench.clock.advance(10_000);
    const now = bench.clock.nowMs();
    const [inherited] = (await bench.engine.fork({ ...plain, ids: [one] })).children;
    const [endless] = (await bench.engine.fork({ ...plain, ids: [two], timeoutSeconds: null })).children;
    const [own] = (await bench.engine.fork({ ...plain, ids: [three], timeoutSeconds: 5 })).children;
    expect([inherited?.deadlineMs, endless?.deadlineMs, own?.deadlineMs]).toEqual([deadlineMs, null, now + 5000]);
  });

  it("refuses ids that are in use, given twice, none, or too many", async () => {
    await bench.engine.create(sandbox("parent"));
    await expect(bench.engine.fork({ ...plain, ids: [parent] })).rejects.toMatchObject({ code: "conflict" });
    await expect(bench.engine.fork({ ...plain, ids: [one, one] })).rejects.toMatchObject({ code: "invalid_input" });
    await expect(bench.engine.fork({ ...plain, ids: [] })).rejects.toMatchObject({ code: "invalid_input" });
    const many = Array.from({ length: 101 }, (_, index) => `many-${index}`);
    await expect(bench.engine.fork({ ...plain, ids: ids(...many) })).rejects.toMatchObject({ code: "invalid_input" });
    await expect(bench.engine.fork({ ...plain, source: one, ids: [two] })).rejects.toMatchObject({ code: "not_found" });
  });

  it("serialises concurrent forks, pauses and resumes of one sandbox", async () => {
    await bench.engine.create(sandbox("parent"));
    let saving = 0;
    bench.driver.onSnapshot = async () => {
      saving += 1;
      expect(saving).toBe(1);
      await new Promise((resolve) => setTimeout(resolve, 5));
      saving -= 1;
    };
    await Promise.all([
      bench.engine.fork({ ...plain, ids: [one] }),
      bench.engine.pause(parent),
      bench.engine.resume(parent),
      bench.engine.fork({ ...plain, ids: [two] }),
      bench.engine.pause(parent),
      bench.engine.fork({ ...plain, ids: [three] }),
    ]);
    expect(bench.engine.get(parent)).toMatchObject({ state: "paused", children: [one, two, three] });
  });

  it("is overtaken by terminate, which leaves nothing of parent and unborn children", async () => {
    await bench.engine.create(sandbox("parent"));
    const restoring = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    bench.driver.onRestore = async () => {
      restoring.resolve();
      await go.promise;
    };
    const forked = expect(bench.engine.fork({ ...plain, ids: [one, two] })).rejects.toMatchObject({ code: "idle_timeout" });
    await restoring.promise;
    const ended = bench.engine.terminate(parent, { subtree: true });
    go.resolve();
    await Promise.all([forked, ended]);
    expect(bench.engine.list()).toEqual([]);
    expect(bench.driver.machines.size).toBe(0);
  });
});

describe("the end of a child while its siblings start", () => {
  it("resolves when nothing of it is left, and not before", async () => {
    await bench.engine.create(sandbox("parent"));
    const before = bench.driver.restores;
    const machines = bench.driver.machines.size;
    const go = Promise.withResolvers<void>();
    bench.driver.onRestore = (count) => (count === before + 2 ? go.promise : undefined);
    const forked = expect(bench.engine.fork({ ...plain, ids: [one, two] })).rejects.toMatchObject({ code: "idle_timeout" });
    await expect.poll(() => bench.seen.adoptions.some(({ sandboxId }) => sandboxId === one)).toBe(true);
    const left: number[] = [];
    const ended = bench.engine.terminate(one).then(() => left.push(bench.driver.machines.size));
    expect(await Promise.race([ended, sleep(20, "it waits for its sibling")])).toBe("it waits for its sibling");
    go.resolve();
    await Promise.all([forked, ended]);
    expect(left).toEqual([machines]);
    expect(bench.engine.list().map(({ id }) => id)).toEqual([parent]);
  });

  it("keeps siblings from being started whose turn has not come", async () => {
    await bench.engine.create(sandbox("parent"));
    const before = bench.driver.restores;
    const [restoring, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    bench.driver.onRestore = () => {
      restoring.resolve();
      return go.promise;
    };
    const many = ids(...Array.from({ length: startsAtOnce + 5 }, (_, at) => `many-${at}`));
    const forked = expect(bench.engine.fork({ ...plain, ids: many })).rejects.toMatchObject({ code: "idle_timeout" });
    await restoring.promise;
    const ended = bench.engine.terminate(many.at(-1)!);
    go.resolve();
    await Promise.all([forked, ended]);
    expect(bench.driver.restores - before).toBe(startsAtOnce);
    expect(bench.engine.list().map(({ id }) => id)).toEqual([parent]);
  });
});

describe("lineage", () => {
  const shape = (node: SandboxTree): unknown => ({ [node.sandbox.id]: node.children.map(shape) });

  it("is a tree that keeps an ended sandbox as long as something below it lives", async () => {
    await bench.engine.create(sandbox("parent"));
    await bench.engine.fork({ ...plain, ids: [one, two] });
    await bench.engine.fork({ ...plain, source: one, ids: [three] });
    await bench.engine.terminate(one);
    expect(shape(bench.engine.tree(parent))).toEqual({ parent: [{ one: [{ three: [] }] }, { two: [] }] });
    await bench.engine.terminate(three);
    expect(shape(bench.engine.tree(parent))).toEqual({ parent: [{ two: [] }] });
  });

  it("ends a whole subtree, and nothing beside it", async () => {
    await bench.engine.create(sandbox("parent"));
    await bench.engine.fork({ ...plain, ids: [one, two] });
    await bench.engine.fork({ ...plain, source: one, ids: [three] });
    await bench.engine.terminate(one, { subtree: true });
    expect(bench.engine.list().map(({ id }) => id)).toEqual([parent, two]);
  });

  it("does not take a new sandbox for the parent of an earlier one's children", async () => {
    await bench.engine.create(sandbox("parent"));
    await bench.engine.fork({ ...plain, ids: [one] });
    await bench.engine.terminate(parent);
    await bench.engine.create(sandbox("parent"));
    expect(bench.engine.get(parent).children).toEqual([]);
  });
});

describe("a fork that the sandbox asks for itself", () => {
  const askFork = (count: number) => bench.hooks.get(parent)!.onForkSelf(count, "");

  /** Restores from now on begin (`restoring` tells of the first) and wait for `go`. */
  function holdRestores(): { restoring: Promise<void>; go: () => void } {
    const restoring = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    bench.driver.onRestore = async () => {
      restoring.resolve();
      await go.promise;
    };
    return { restoring: restoring.promise, go: go.resolve };
  }

  it("spends the budget with the start of the children, never more of it, and nothing when it fails", async () => {
    await bench.engine.create(sandbox("parent", { forkBudget: 3 }));
    const { restoring, go } = holdRestores();
    const asked = askFork(2);
    await restoring;
    expect(bench.engine.get(parent).forksUsed).toBe(0);
    await expect(askFork(2)).rejects.toMatchObject({ code: "budget_exhausted", detail: { context: { remaining: 1 } } });
    go();
    expect(await asked).toHaveLength(2);
    expect(bench.engine.get(parent)).toMatchObject({ forksUsed: 2, children: await asked });
    bench.driver.onRestore = () => {
      throw new Error("no container");
    };
    await expect(askFork(1)).rejects.toMatchObject({ code: "internal" });
    expect(bench.engine.get(parent).forksUsed).toBe(2);
    bench.driver.onRestore = () => {};
    expect(await askFork(1)).toHaveLength(1);
  });

  it("is waited for by a server that closes, and refused by one that is closing", async () => {
    await bench.engine.create(sandbox("parent", { forkBudget: 3 }));
    const { restoring, go } = holdRestores();
    const asked = askFork(1);
    await restoring;
    const closed = bench.engine.close({ sandboxes: "keep" });
    await expect(askFork(1)).rejects.toMatchObject({ code: "unavailable" });
    go();
    const [child] = await asked;
    await closed;
    await bench.reopen();
    expect(bench.engine.list().map(({ id, state }) => [id, state])).toEqual([
      [parent, "running"],
      [child, "running"],
    ]);
    expect(bench.engine.get(parent).forksUsed).toBe(1);
  });
});
