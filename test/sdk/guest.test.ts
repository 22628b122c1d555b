/** Programs in a sandbox that know where they are and fork themselves, with the SDK's own file for it, under the limits of a key. */

import { readFileSync, rmSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
import os from "node:os";
import path from "node:path";
import type { KeyLimits } from "@mitos/engine";
import { resourceDefaults } from "@mitos/protocol";
import { type CreateOptions, create, Sandbox, SandboxServer } from "@mitos/sdk";
import { type RunningServer, startServer } from "@mitos/server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const auditLog = path.join(os.tmpdir(), `mitos-guest-audit-${process.pid}.log`);
/** As it is published: without types, for whatever Node a sandbox has. */
const guestModule = stripTypeScriptTypes(readFileSync(path.join(import.meta.dirname, "../../packages/sdk/src/guest.ts"), "utf8"));

let live: LiveEngine;
let server: RunningServer;
beforeAll(async () => {
  live = await startLiveEngine();
  server = await startServer({ engine: live.engine, host: "127.0.0.1", port: 0, auth: true, auditLog, log: quiet, version: "test" });
});
afterAll(async () => {
  await server.close();
  await live.close();
  rmSync(auditLog, { force: true });
});

interface Owner {
  apiKey: string;
  keyId: string;
  create(options?: CreateOptions): Promise<Sandbox>;
  at(id: string): Promise<Sandbox>;
  ids(): Promise<string[]>;
}

function owner(name: string, limits: Partial<KeyLimits> = {}): Owner {
  const { key: apiKey, record } = live.engine.keys.create({
    name,
    owner: name,
    organisation: "acme",
    scopes: ["read", "execute", "lifecycle"],
    ttlSeconds: 0,
    limits,
  });
  return {
    apiKey,
    keyId: record.id,
    create: async (options = {}) => {
      const sandbox = await create({ template: "base", baseUrl: server.url, apiKey, ...options });
      await sandbox.files.write("/workspace/guest.mjs", guestModule);
      return sandbox;
    },
    at: (id) => Sandbox.connect(id, { baseUrl: server.url, apiKey }),
    ids: async () => (await new SandboxServer(server.url, apiKey).listSandboxes()).map(({ id }) => id),
  };
}

/** Runs a program in the sandbox: a module that has everything of `guest` in `guest`. */
async function run<T>(sandbox: Sandbox, program: string, env: Record<string, string> = {}): Promise<T> {
  await sandbox.files.write(
    "/workspace/program.mjs",
    `import * as guest from "./guest.mjs"; import { writeFileSync } from "node:fs";\nconst told = (error) => ({ name: error.name, code: error.code, message: error.message, remediation: error.remediation });\n${program}`,
  );
  const { exitCode, stdout, stderr } = await sandbox.exec(["node", "program.mjs"], { env, timeoutSeconds: 120 });
  expect(exitCode, stderr).toBe(0);
  return JSON.parse(stdout);
}

interface Told {
  name: string;
  code: string;
  message: string;
  remediation: string;
}

const forkOnce = "console.log(JSON.stringify(await guest.fork().catch(told)))";
const budgetOf = (sandbox: Sandbox) => run(sandbox, "console.log(JSON.stringify((await guest.info()).budget))");

describe("a program that forks its own sandbox", () => {
  it("gets the ids of the children, and goes on in each child, which knows its own id", async () => {
    const alice = owner("alice");
    await using parent = await alice.create({ forkBudget: 3, metadata: { task: "t" } });
    const program = `
const line = [];
for (const label of ["first", "second"]) {
  const children = await guest.fork(1, { label });
  line.push(...children);
  if (children.length === 0) {
    writeFileSync("/workspace/me.json", JSON.stringify({ label, siblings: line, ...(await guest.info()) }));
    process.exit();
  }
}
console.log(JSON.stringify({ line, ...(await guest.info()) }));`;
    const { line, identity, budget } = await run<{ line: string[]; identity: object; budget: object }>(parent, program);
    expect(identity).toEqual({ sandboxId: parent.id, templateId: "base" });
    expect(budget).toEqual({ maxForks: 3, maxCheckpoints: 0, forksUsed: 2 });
    expect(await parent.info()).toMatchObject({ children: line, forkBudget: 3, forksUsed: 2 });
    expect(await alice.ids()).toEqual([parent.id, ...line]);
    for (const [index, label] of ["first", "second"].entries()) {
      const child = await alice.at(line[index]!);
      await until("the program has gone on in the child", () => child.files.exists("/workspace/me.json"));
      expect(JSON.parse(await child.files.read("/workspace/me.json"))).toEqual({
        label,
        siblings: line.slice(0, index),
        identity: { sandboxId: child.id, templateId: "base", parentId: parent.id },
        budget: { maxForks: 0, maxCheckpoints: 0, forksUsed: 0 },
      });
      expect(await child.info()).toMatchObject({ parentId: parent.id, metadata: { task: "t", label }, forkBudget: 0 });
      await child.terminate();
    }
    const lines = readFileSync(auditLog, "utf8")
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line));
    expect(lines.filter(({ op, sandbox_id }) => op === "fork_self" && sandbox_id === parent.id)).toMatchObject(
      line.map((id) => ({ detail: `children=${id}`, ok: true, owner: "alice", key_id: alice.keyId })),
    );
  });

  it("is refused when it has no budget, or asks for more than is left, and is told what would help", async () => {
    const alice = owner("alice");
    await using none = await alice.create();
    expect(await run<Told>(none, forkOnce)).toEqual({
      name: "GuestError",
      code: "budget_exhausted",
      message: expect.stringContaining("its fork budget is 0"),
      remediation: expect.stringContaining("forkBudget"),
    });
    await using some = await alice.create({ forkBudget: 2 });
    const three = await run<Told>(some, "console.log(JSON.stringify(await guest.fork(3).catch(told)))");
    expect([three.code, three.message]).toEqual(["budget_exhausted", expect.stringContaining("2 are left of the fork budget of 2")]);
    for (const n of [0, -1, 1.5, 101]) {
      const odd = await run<Told>(some, `console.log(JSON.stringify(await guest.fork(${n}).catch(told)))`);
      expect(odd.code).toBe("invalid_input");
    }
    expect(await alice.ids()).toEqual([none.id, some.id]);
    expect(await budgetOf(some)).toMatchObject({ maxForks: 2, forksUsed: 0 });
  });

  it("keeps what is left of its budget over a pause, and a child has its own, given from outside", async () => {
    const alice = owner("alice");
    await using parent = await alice.create({ forkBudget: 2 });
    const [first] = await run<string[]>(parent, forkOnce);
    await parent.pause();
    await parent.resume();
    expect(await budgetOf(parent)).toEqual({ maxForks: 2, maxCheckpoints: 0, forksUsed: 1 });
    const [child] = await parent.fork({ count: 1, forkBudget: 1 });
    const [plain] = await parent.fork();
    expect(await budgetOf(child!)).toMatchObject({ maxForks: 1, forksUsed: 0 });
    expect(await budgetOf(plain!)).toMatchObject({ maxForks: 0 });
    const [grandchild] = await run<string[]>(child!, forkOnce);
    expect((await (await alice.at(grandchild!)).info()).parentId).toBe(child!.id);
    expect((await run<Told>(child!, forkOnce)).code).toBe("budget_exhausted");
    for (const id of [first!, grandchild!]) await (await alice.at(id)).terminate();
    await Promise.all([child!.terminate(), plain!.terminate()]);
  });

  it("is refused when it was given secrets", async () => {
    await using parent = await owner("alice").create({ forkBudget: 1, secrets: { TOKEN: "hidden-value" } });
    const refused = await run<Told>(parent, forkOnce);
    expect([refused.code, refused.message]).toEqual(["secret_inheritance_denied", expect.not.stringContaining("hidden-value")]);
    expect(await budgetOf(parent)).toMatchObject({ forksUsed: 0 });
  });
});

describe("the limits of the key that gave the budget", () => {
  it("hold for children that sandboxes make of themselves, as for all others", async () => {
    const bob = owner("bob", { maxSandboxes: 2 });
    const parent = await bob.create({ forkBudget: 5 });
    const two = await run<Told>(parent, "console.log(JSON.stringify(await guest.fork(2).catch(told)))");
    expect(two).toMatchObject({ name: "GuestError", code: "quota_exceeded", message: expect.stringContaining("the key allows 2") });
    const [child] = await run<string[]>(parent, forkOnce);
    expect((await run<Told>(parent, forkOnce)).code).toBe("quota_exceeded");
    expect(await bob.ids()).toEqual([parent.id, child]);
    // What was refused is not spent, and room is room.
    expect(await parent.info()).toMatchObject({ forkBudget: 5, forksUsed: 1 });
    await (await bob.at(child!)).terminate();
    const [next] = await run<string[]>(parent, forkOnce);
    expect(next).toMatch(/^sandbox-/);
    await parent.terminate({ subtree: true });
  });

  it("hold for memory, and for several programs that ask at once", async () => {
    const carol = owner("carol", { maxSandboxes: 3, maxMemoryMiB: 3 * resourceDefaults.memSizeMiB });
    const parent = await carol.create({ forkBudget: 9 });
    const program = `
const answers = await Promise.all([0, 1, 2, 3].map(() => guest.fork().catch(told)));
console.log(JSON.stringify(answers));`;
    const answers = await run<(string[] | Told)[]>(parent, program);
    const made = answers.flatMap((answer) => (Array.isArray(answer) ? answer : []));
    const refused = answers.flatMap((answer) => (Array.isArray(answer) ? [] : answer.code));
    expect([made.length, refused]).toEqual([2, ["quota_exceeded", "quota_exceeded"]]);
    expect(new Set(await carol.ids())).toEqual(new Set([parent.id, ...made]));
    await parent.terminate({ subtree: true });
  });

  it("end with the key: once it is revoked, its sandboxes make no more of themselves", async () => {
    const dave = owner("dave");
    const parent = await dave.create({ forkBudget: 5 });
    await parent.files.write(
      "/workspace/go.mjs",
      `import { fork } from "./guest.mjs"; console.log(await fork().catch((error) => error.code));`,
    );
    live.engine.keys.revoke(dave.keyId);
    const other = await Sandbox.connect(parent.id, { baseUrl: server.url, apiKey: owner("dave").apiKey });
    expect((await other.exec(["node", "go.mjs"])).stdout).toBe("forbidden\n");
    expect(await other.info()).toMatchObject({ children: [], forksUsed: 0 });
    await other.terminate();
  });
});

describe("sub-agents", () => {
  it("are children of the sandbox where there is one, and nothing without a word where there is none", async () => {
    await using parent = await owner("alice").create({ forkBudget: 2 });
    const program = `
const where = { on: guest.isOnMitos(), current: await guest.currentSandbox() };
const result = await guest.spawnSubagent(2, { label: "worker" });
console.log(JSON.stringify({ ...where, ...result, again: await guest.spawnSubagent().catch(told) }));`;
    const on = await run<{ children: { sandboxId: string }[] }>(parent, program);
    const children = [...(await parent.info()).children!].map((sandboxId) => ({ sandboxId, label: "worker", onMitos: true }));
    expect(on).toMatchObject({
      on: true,
      current: { sandboxId: parent.id },
      onMitos: true,
      reason: "",
      again: { code: "budget_exhausted" },
    });
    expect(new Set(on.children)).toEqual(new Set(children));
    expect(on).toMatchObject({ first: on.children[0] });
    const off = await run(parent, program, { MITOS_SOCKET: "" });
    expect(off).toEqual({
      on: false,
      current: null,
      onMitos: false,
      children: [],
      reason: expect.stringMatching(/./),
      again: expect.anything(),
    });
    const elsewhere = await run<Told>(parent, forkOnce, { MITOS_SOCKET: "/nowhere.sock" });
    expect(elsewhere).toMatchObject({
      name: "GuestUnavailableError",
      code: "guest_unavailable",
      message: expect.stringContaining("ENOENT"),
    });
    for (const { sandboxId } of children) await live.engine.terminate(sandboxId as never);
  });
});
