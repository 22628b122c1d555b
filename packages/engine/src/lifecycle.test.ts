import { MitosError, type SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Bench, ids, sandbox, template } from "./testing.ts";

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(async () => {
  await bench[Symbol.asyncDispose]();
  expect(bench.driver.machines.size).toBe(0);
});

const [a] = ids("a") as [SandboxId];

function codeOf(action: () => unknown): string | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    return error instanceof MitosError ? `${error.code}: ${error.detail.cause}` : String(error);
  }
}

/** Waits until what an event started has come to its end; bounded by the test's own time-out. */
/** Snapshots begin (`saving` tells) and wait for `go`. */
function holdSnapshot(): { saving: Promise<void>; go: PromiseWithResolvers<void> } {
  const saving = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  bench.driver.onSnapshot = async () => {
    saving.resolve();
    await go.promise;
  };
  return { saving: saving.promise, go };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

describe("create", () => {
  it("refuses an id in use, and takes it again after its holder was terminated", async () => {
    await bench.engine.create(sandbox("a"));
    await expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "conflict" });
    await bench.engine.terminate(a);
    await expect(bench.engine.create(sandbox("a"))).resolves.toMatchObject({ state: "running" });
  });

  it("leaves nothing when the machine does not start", async () => {
    const restores = bench.driver.restores;
    bench.driver.onRestore = (count) => {
      if (count === restores + 1) throw new Error("no container");
    };
    await expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "internal" });
    expect(codeOf(() => bench.engine.get(a))).toContain("not_found");
    await expect(bench.engine.create(sandbox("a"))).resolves.toMatchObject({ state: "running" });
  });

  it("refuses with quota_exceeded before any work when there is no memory", async () => {
    bench.availableBytes = 10 * 1024 * 1024;
    const restores = bench.driver.restores;
    await expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "quota_exceeded" });
    expect(bench.driver.restores).toBe(restores);
  });

  it("refuses an unknown template", async () => {
    await expect(bench.engine.create({ ...sandbox("a"), template: template("nope").id })).rejects.toMatchObject({ code: "not_found" });
  });

  it("lets a terminate that comes while it starts win", async () => {
    const restoring = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    bench.driver.onRestore = async () => {
      restoring.resolve();
      await go.promise;
    };
    const created = expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "idle_timeout" });
    await restoring.promise;
    const ended = bench.engine.terminate(a);
    go.resolve();
    await Promise.all([created, ended]);
    expect(bench.driver.machines.size).toBe(0);
    expect(codeOf(() => bench.engine.get(a))).toContain("terminated");
  });
});

describe("pause and resume", () => {
  it("end the machine and bring it back, five times, and leave no snapshot behind", async () => {
    await bench.engine.create(sandbox("a"));
    const folders = await bench.snapshotFolders();
    for (let round = 0; round < 5; round += 1) {
      await bench.engine.pause(a);
      expect(bench.engine.get(a).state).toBe("paused");
      expect(bench.driver.machines.size).toBe(0);
      await bench.engine.resume(a);
      expect(bench.engine.get(a).state).toBe("running");
    }
    await bench.engine.terminate(a);
    await expect.poll(() => bench.snapshotFolders()).toEqual(folders);
  });

  it("do nothing to a sandbox that is in the wanted state already", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.resume(a);
    await bench.engine.pause(a);
    await bench.engine.pause(a);
    expect(bench.engine.get(a).state).toBe("paused");
  });

  it("leave the sandbox running when it cannot be saved", async () => {
    await bench.engine.create(sandbox("a"));
    bench.driver.onSnapshot = () => {
      throw new Error("disk full");
    };
    await expect(bench.engine.pause(a)).rejects.toMatchObject({ code: "internal" });
    expect(bench.engine.get(a).state).toBe("running");
    bench.driver.onSnapshot = () => {};
    await bench.engine.pause(a);
    expect(bench.engine.get(a).state).toBe("paused");
  });

  it("leave the sandbox paused when it cannot be restored, and resume it later", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    const restores = bench.driver.restores;
    bench.driver.onRestore = (count) => {
      if (count === restores + 1) throw new Error("no container");
    };
    await expect(bench.engine.resume(a)).rejects.toMatchObject({ code: "internal" });
    expect(bench.engine.get(a).state).toBe("paused");
    await bench.engine.resume(a);
    expect(bench.engine.get(a).state).toBe("running");
  });

  it("refuse a resume on a host that does not fit any more, with snapshot_incompatible", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    bench.driver.onCheck = () => {
      throw new MitosError("snapshot_incompatible", { cause: "/usr/bin/python3 was replaced" });
    };
    await expect(bench.engine.resume(a)).rejects.toMatchObject({ code: "snapshot_incompatible" });
    expect(bench.engine.get(a).state).toBe("paused");
    bench.driver.onCheck = () => {};
  });

  it("answer runtime calls with sandbox_not_running while it is paused, and not_found when it is unknown", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    expect(codeOf(() => bench.engine.runtime(a))).toMatch(/^sandbox_not_running: sandbox a is paused/);
    expect(codeOf(() => bench.engine.runtime(ids("b")[0] as SandboxId))).toMatch(/^not_found/);
  });

  it("wait for each other when they come while the other is under way", async () => {
    await bench.engine.create(sandbox("a"));
    const { saving, go } = holdSnapshot();
    const paused = bench.engine.pause(a);
    await saving;
    expect(bench.engine.get(a).state).toBe("pausing");
    const resumed = bench.engine.resume(a);
    const forked = bench.engine.fork({ source: a, ids: ids("b"), inheritSecrets: false, env: {} });
    go.resolve();
    await Promise.all([paused, resumed, forked]);
    expect(bench.engine.list().map(({ id, state }) => [id, state])).toEqual([
      ["a", "running"],
      ["b", "running"],
    ]);
  });

  it("are overtaken by terminate", async () => {
    await bench.engine.create(sandbox("a"));
    const { saving, go } = holdSnapshot();
    const paused = expect(bench.engine.pause(a)).rejects.toMatchObject({ code: "idle_timeout" });
    await saving;
    const ended = bench.engine.terminate(a);
    expect(codeOf(() => bench.engine.get(a))).toContain("idle_timeout");
    go.resolve();
    await Promise.all([paused, ended]);
  });
});

describe("time", () => {
  it("ends a sandbox at its deadline and says so afterwards", async () => {
    await bench.engine.create(sandbox("a", { timeoutSeconds: 60 }));
    bench.clock.advance(59_000);
    expect(bench.engine.get(a).state).toBe("running");
    bench.clock.advance(1_000);
    await until(() => bench.driver.machines.size === 0);
    expect(codeOf(() => bench.engine.runtime(a))).toMatch(/^idle_timeout: .*time-out/);
  });

  it("replaces the deadline, sooner or later", async () => {
    await bench.engine.create(sandbox("a", { timeoutSeconds: 60 }));
    const { deadlineMs } = await bench.engine.setTimeout(a, 600);
    expect(deadlineMs).toBe(bench.clock.nowMs() + 600_000);
    bench.clock.advance(599_000);
    expect(bench.engine.get(a).state).toBe("running");
    await bench.engine.setTimeout(a, 1);
    bench.clock.advance(1_000);
    expect(bench.engine.list()).toEqual([]);
  });

  it("refuses time-outs that are no time or too long", async () => {
    await bench.engine.create(sandbox("a"));
    await expect(bench.engine.setTimeout(a, 0)).rejects.toMatchObject({ code: "invalid_input" });
    await expect(bench.engine.setTimeout(a, Number.NaN)).rejects.toMatchObject({ code: "invalid_input" });
    await expect(bench.engine.setTimeout(a, 2 ** 31 + 1)).rejects.toMatchObject({ code: "timeout_too_large" });
    await expect(bench.engine.setTimeout(a, 2 ** 31)).resolves.toBeDefined();
    await expect(bench.engine.setTimeout(ids("b")[0] as SandboxId, 5)).rejects.toMatchObject({ code: "not_found" });
  });

  /** What the machine that is started next hears of its deadline once its agent is spoken to, when `change` happens then. */
  function hearDeadlines(change: () => Promise<unknown>): { heard: (number | null)[] } {
    const heard: (number | null)[] = [];
    bench.onOpen = async () => {
      bench.onOpen = () => {};
      const machine = [...bench.driver.machines.values()].at(-1)!;
      const { setDeadline } = machine;
      machine.setDeadline = (deadlineMs) => {
        heard.push(deadlineMs);
        return setDeadline.call(machine, deadlineMs);
      };
      await change();
    };
    return { heard };
  }

  it("tells the machine a deadline that is changed while its sandbox resumes", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    const { heard } = hearDeadlines(() => bench.engine.setTimeout(a, 600));
    await bench.engine.resume(a);
    expect(heard).toEqual([bench.clock.nowMs() + 600_000]);
  });

  it("tells the machine nothing again when nothing was changed", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    const { heard } = hearDeadlines(async () => {});
    await bench.engine.resume(a);
    expect(heard).toEqual([]);
  });

  it("deletes a paused sandbox at its deadline, with its snapshot", async () => {
    await bench.engine.create(sandbox("a", { timeoutSeconds: 60 }));
    const folders = await bench.snapshotFolders();
    await bench.engine.pause(a);
    bench.clock.advance(60_000);
    expect(bench.engine.list()).toEqual([]);
    await expect.poll(() => bench.snapshotFolders()).toEqual(folders);
  });

  it("ends an idle sandbox, but not a paused one nor because it was looked at", async () => {
    await bench.engine.create(sandbox("a", { idleTimeoutSeconds: 30 }));
    bench.clock.advance(20_000);
    bench.engine.get(a);
    bench.engine.list();
    await bench.engine.pause(a);
    bench.clock.advance(3_600_000);
    await bench.engine.resume(a);
    bench.clock.advance(29_000);
    expect(bench.engine.get(a).state).toBe("running");
    bench.clock.advance(1_000);
    expect(codeOf(() => bench.engine.get(a))).toMatch(/^idle_timeout: .*idle/);
  });
});

describe("a machine that ends by itself", () => {
  it("is a failed sandbox at once, which stays listed until it is deleted", async () => {
    await bench.engine.create(sandbox("a"));
    await [...bench.driver.machines.values()][0]?.end("kill -9 from outside");
    await until(() => bench.engine.list()[0]?.state === "failed");
    expect(bench.engine.get(a)).toMatchObject({ state: "failed", endReason: expect.stringContaining("kill -9 from outside") });
    expect(codeOf(() => bench.engine.runtime(a))).toMatch(/^sandbox_not_running: sandbox a has failed/);
    await bench.engine.terminate(a);
    expect(bench.engine.list()).toEqual([]);
  });
});

describe("templates", () => {
  it("are answered from their snapshot when nothing changed, and built anew when the definition did", async () => {
    const { boots } = bench.driver;
    await bench.engine.createTemplate(template("python"));
    expect(bench.driver.boots).toBe(boots);
    await bench.engine.createTemplate(template("python", { resources: { vcpuCount: 2, memSizeMiB: 1024, processesMax: 64 } }));
    expect(bench.driver.boots).toBe(boots + 1);
    await expect(bench.engine.create(sandbox("a"))).resolves.toMatchObject({ resources: { memSizeMiB: 1024 } });
  });

  it("are built once for equal requests at the same time", async () => {
    const { boots } = bench.driver;
    await Promise.all(Array.from({ length: 5 }, () => bench.engine.createTemplate(template("other"))));
    expect(bench.driver.boots).toBe(boots + 1);
  });

  it("are built anew at create when the host changed under them", async () => {
    const { boots } = bench.driver;
    let valid = false;
    bench.driver.onCheck = () => {
      if (!valid) {
        valid = true;
        throw new MitosError("snapshot_incompatible");
      }
    };
    await bench.engine.create(sandbox("a"));
    expect(bench.driver.boots).toBe(boots + 1);
  });

  it("say build_failed and leave nothing when they cannot be saved", async () => {
    bench.driver.onSnapshot = () => {
      throw new Error("disk full");
    };
    await expect(bench.engine.createTemplate(template("other"))).rejects.toMatchObject({ code: "build_failed" });
    expect(bench.engine.listTemplates().map(({ id }) => id)).toEqual(["python"]);
    expect(bench.driver.machines.size).toBe(0);
  });

  it("are deleted with their snapshot, but not while they are built", async () => {
    const { saving, go } = holdSnapshot();
    const built = bench.engine.createTemplate(template("other"));
    await saving;
    await expect(bench.engine.deleteTemplate(template("other").id)).rejects.toMatchObject({ code: "conflict" });
    expect(bench.engine.listTemplates().map(({ id, ready }) => [id, ready])).toEqual([
      ["python", true],
      ["other", false],
    ]);
    go.resolve();
    await built;
    await bench.engine.deleteTemplate(template("other").id);
    await expect(bench.engine.deleteTemplate(template("other").id)).rejects.toMatchObject({ code: "not_found" });
    expect(await bench.snapshotFolders()).toHaveLength(1);
  });
});

describe("the end of a sandbox", () => {
  it("is told once to whoever asked, whatever ended it, and not for a pause", async () => {
    const [b, c] = ids("b", "c") as [SandboxId, SandboxId];
    const ended: SandboxId[] = [];
    const stop = bench.engine.onEnd(({ id }) => ended.push(id));
    for (const id of ["a", "c"]) await bench.engine.create(sandbox(id));
    const others = new Set(bench.driver.machines.keys());
    await bench.engine.create(sandbox("b"));
    const machine = [...bench.driver.machines].find(([id]) => !others.has(id))![1];
    await bench.engine.pause(a);
    await bench.engine.resume(a);
    expect(ended).toEqual([]);
    await bench.engine.terminate(a);
    await bench.engine.terminate(a);
    expect(ended).toEqual([a]);
    await machine.end("by somebody else");
    await until(() => ended.length === 2);
    await bench.engine.terminate(b);
    expect(ended).toEqual([a, b]);
    stop();
    await bench.engine.terminate(c);
    expect(ended).toEqual([a, b]);
  });

  it("is told once to whoever listens, with its cause, and to the next server's listeners when it was found there", async () => {
    const told: string[] = [];
    const stop = bench.engine.onEnd(({ id, cause }) => told.push(`${id} ${cause}`));
    await bench.engine.create(sandbox("a"));
    await bench.engine.create(sandbox("b", { timeoutSeconds: 60 }));
    await bench.engine.create(sandbox("c"));
    await bench.engine.terminate(a);
    await bench.engine.terminate(a);
    bench.clock.advance(60_000);
    expect(told).toEqual(["a terminated", "b time-out"]);
    stop();
    await bench.engine.close({ sandboxes: "keep" });
    for (const machine of bench.driver.machines.values()) await machine.end("power cut");
    await bench.reopen();
    for (const _listener of [1, 2]) bench.engine.onEnd(({ id, cause }) => told.push(`${id} ${cause}`));
    await bench.engine.terminate(ids("c")[0]!);
    expect(told.slice(2)).toEqual(["c lost", "c lost"]);
  });

  it("comes for paused sandboxes too when the server ends all", async () => {
    await bench.engine.create(sandbox("a"));
    const folders = await bench.snapshotFolders();
    await bench.engine.pause(a);
    await bench.engine.close({ sandboxes: "end" });
    await bench.reopen();
    expect(bench.engine.list()).toEqual([]);
    expect(await bench.snapshotFolders()).not.toContainEqual(expect.stringMatching(/^pause-/));
    expect(folders).toHaveLength(1);
  });

  it("comes for one whose creation is still under way when the server ends all", async () => {
    await bench.engine.create(sandbox("a"));
    const [checked, release] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    bench.driver.onCheck = () => {
      checked.resolve();
      return release.promise;
    };
    const creating = bench.engine.create(sandbox("b"));
    await checked.promise;
    const closing = bench.engine.close({ sandboxes: "end" });
    release.resolve();
    await Promise.allSettled([creating, closing]);
    expect([...bench.driver.machines.keys()]).toEqual([]);
    await bench.reopen();
    expect(bench.engine.list()).toEqual([]);
  });
});
