import { type AgentRunError, Sandbox, type ServerSandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { memoryHog } from "../support/memory-hog.ts";
import { until } from "../support/until.ts";
import { accountOf, processesOf } from "./host-account.ts";
import { ServedDirectory } from "./served-directory.ts";

let directory: ServedDirectory;
beforeAll(async () => {
  directory = await ServedDirectory.open();
  // The template's, not the sandbox's: a virtual machine keeps the memory of its template.
  await directory.api.createTemplate("base", { resources: { memSizeMiB: 128 } });
});
afterAll(() => directory[Symbol.asyncDispose]());

/**
 * Nothing on the way waits for a tick longer than 500 ms: the shim sleeps on its children's signals and the machine's pidfd, looks every 20 ms
 * while it ends what is left, and its sockets close with it, which wakes the server. Only memory (500 ms) is looked at by the clock.
 */
const noticedWithinMs = 1_000;
/** This process and others compete with the server for the processor. */
const patience = 5;

async function create(id: string): Promise<{ sandbox: Sandbox; machine: number; shim: number }> {
  const before = accountOf(directory.dataDir).machineNames;
  const sandbox = await directory.api.fork("base", id);
  const name = accountOf(directory.dataDir).machineNames.find((found) => !before.includes(found));
  return { sandbox, ...processesOf(directory.dataDir, name!) };
}

async function row(id: string): Promise<ServerSandbox | undefined> {
  return (await directory.api.listSandboxes()).find((found) => found.id === id);
}

/** Counted by `/metrics` for a reason. */
async function endsOf(reason: string): Promise<number> {
  const text = await (await fetch(`${directory.server.url}/metrics`)).text();
  return Number(new RegExp(`^mitos_sandbox_ends_total\\{reason="${reason}"\\} (\\d+)$`, "m").exec(text)?.[1] ?? 0);
}

/** Listed as failed with the reason, told to whoever uses it, counted once, gone with DELETE, and nothing of it on the host. */
async function expectFailed(id: string, reason: string, why: RegExp, counted: number): Promise<void> {
  expect(await row(id)).toMatchObject({ state: "failed", endReason: expect.stringMatching(why) });
  expect(await endsOf(reason)).toBe(counted);
  const sandbox = new Sandbox({ id, endpoint: directory.server.url });
  await expect(sandbox.exec("true")).rejects.toMatchObject({
    code: reason === "oom_killed" ? "oom_killed" : "sandbox_not_running",
    errorCause: expect.stringMatching(new RegExp(why.source.slice(1))),
  });
  await until("nothing of it is left on the host", () => accountOf(directory.dataDir).machineNames.length === 0);
  await sandbox.terminate();
  expect(await row(id)).toBeUndefined();
  await expect(sandbox.info()).rejects.toMatchObject({ status: 410 });
  expect(await endsOf(reason)).toBe(counted);
}

describe("a machine that is killed from outside", () => {
  it.each([
    ["its host process", "machine", "killed", /^killed: its host process was killed by signal 9/],
    ["its shim", "shim", "lost", /^lost: its shim on the host vanished/],
  ] as const)("is noticed within a second, with the reason: %s", async (_what, which, reason, why) => {
    const counted = await endsOf(reason);
    const made = await create(`killed-${which}`);
    const stream = made.sandbox.exec("echo begun > /tmp/begun; sleep 1000");
    const ended = stream.then(
      () => undefined,
      (error: AgentRunError) => error,
    );
    await until("the exec runs", () => made.sandbox.files.exists("/tmp/begun"));
    const began = performance.now();
    process.kill(made[which], "SIGKILL");
    await until("the sandbox has failed", async () => (await row(made.sandbox.id))?.state === "failed");
    expect(performance.now() - began).toBeLessThan(noticedWithinMs * patience);
    expect(await ended).toMatchObject({ code: "sandbox_not_running", errorCause: expect.stringContaining(reason) });
    await expectFailed(made.sandbox.id, reason, why, counted + 1);
  });

  it.each([
    ["its host process", "machine", "killed", /^killed: its host process was killed by signal 9/],
    ["its shim", "shim", "lost", /^lost: its shim on the host vanished/],
  ] as const)("while no server lives is reported once by the next one, with the reason: %s", async (_what, which, reason, why) => {
    const made = await create(`alone-${which}`);
    await directory.server.kill();
    process.kill(made[which], "SIGKILL");
    await directory.restart();
    await expectFailed(made.sandbox.id, reason, why, 1);
    await directory.crash();
    expect(await directory.api.listSandboxes()).toEqual([]);
    expect(await endsOf(reason)).toBe(0);
  });
});

describe("a machine that takes more memory than its limit", () => {
  it("fails as oom_killed, also in the list, and in the metrics", async () => {
    const { sandbox } = await create("greedy");
    await sandbox.execBackground(memoryHog).started;
    await until("the sandbox has failed", async () => (await row("greedy"))?.state === "failed");
    await expectFailed("greedy", "oom_killed", /^oom_killed: .*128 MiB/, (await endsOf("oom_killed")) || 1);
  });

  it("says so to the next server when none lived", async () => {
    const { sandbox, shim } = await create("greedy-alone");
    await sandbox.execBackground(`sleep 2; ${memoryHog}`).started;
    await directory.server.kill();
    await until("its shim has ended", () => !isAlive(shim));
    await directory.restart();
    await expectFailed("greedy-alone", "oom_killed", /^oom_killed/, 1);
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
