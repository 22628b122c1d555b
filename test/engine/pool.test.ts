import type { Sandbox } from "@mitos/sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { accountOf, processesOf } from "../faults/host-account.ts";
import { ticksOf, treeOf } from "../support/host-processes.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

let live: LiveServer;
beforeAll(async () => {
  live = await startLiveServer();
});
afterEach(async () => {
  await Promise.all(live.engine.list().map(({ id }) => live.engine.terminate(id)));
});
afterAll(() => live.close());

const pool = () => live.engine.counts().pool;

/** A create that found a machine waiting. */
async function claim(): Promise<Sandbox> {
  await until("a machine waits", () => pool().waiting > 0);
  const { hits } = pool();
  const sandbox = await live.create({ env: { OWN: "yes" } });
  expect(pool().hits).toBe(hits + 1);
  return sandbox;
}

describe("a machine that waits for a create", () => {
  it("becomes a sandbox like any other: with an identity, randomness, environment and clock of its own", async () => {
    await (await live.create()).terminate();
    const sandboxes = [await claim(), await claim(), await claim()];
    const facts = await Promise.all(
      sandboxes.map(async (sandbox) => {
        const { stdout } = await sandbox.exec(
          "hostname; cat /etc/machine-id; echo; head -c 16 /dev/urandom | od -An -tx1; cat /run/sandbox/fork-generation; echo; echo $OWN; date +%s",
        );
        const drawn = await sandbox.runCode("import random; print(random.random())");
        return { lines: stdout.split("\n").filter(Boolean), drawn: drawn.logs.stdout.join("") };
      }),
    );
    for (const column of [0, 1, 2]) expect(new Set(facts.map(({ lines }) => lines[column])).size).toBe(3);
    expect(new Set(facts.map(({ drawn }) => drawn)).size).toBe(3);
    for (const { lines } of facts) {
      expect(lines[4]).toBe("yes");
      expect(Math.abs(Number(lines[5]) - Date.now() / 1000)).toBeLessThan(60);
    }
  });

  it("has nothing left of what it did while it waited", async () => {
    const sandbox = await claim();
    const { stdout } = await sandbox.exec("cat /proc/[0-9]*/comm | grep -c mitos-guest; grep -h ^State: /proc/[0-9]*/status | grep -c Z");
    expect(stdout.trim().split("\n")).toEqual(["1", "0"]);
    expect((await sandbox.runCode("1 + 1")).text).toBe("2");
  });

  it("can be forked and paused as any other", async () => {
    const parent = await claim();
    await parent.runCode("kept = 41");
    const [child] = await parent.fork(1);
    expect((await child!.runCode("print(kept + 1)")).logs.stdout.join("")).toBe("42\n");
    await parent.pause();
    await parent.resume();
    expect((await parent.runCode("print(kept)")).logs.stdout.join("")).toBe("41\n");
  });

  it("takes no processor, and one that was killed is replaced without anybody noticing", async () => {
    await until("a machine waits", () => pool().waiting > 0);
    const names = accountOf(live.dataDir).machineNames;
    expect(names).toHaveLength(pool().waiting);
    const { machine } = processesOf(live.dataDir, names[0]!);
    const tree = treeOf(machine);
    const used = () => tree.reduce((sum, pid) => sum + ticksOf(pid), 0);
    const before = used();
    await new Promise((resolve) => setTimeout(resolve, 1_000)); // what is measured is a time
    expect(used()).toBe(before);

    const { waiting } = pool();
    process.kill(machine, "SIGKILL");
    await until("it is missed", () => pool().waiting < waiting);
    expect((await (await live.create()).exec("echo alive")).stdout).toBe("alive\n");
  });

  it("ends with its template", async () => {
    await until("a machine waits", () => pool().waiting > 0);
    for (const { id } of live.engine.listTemplates()) await live.engine.deleteTemplate(id);
    expect(pool().waiting).toBe(0);
    expect(accountOf(live.dataDir).machineNames).toEqual([]);
  });
});
