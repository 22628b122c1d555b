import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ForkResult, SelfFork } from "@mitos/engine";
import type { SandboxId } from "@mitos/protocol";
import { afterAll, describe, expect, it } from "vitest";
import { bearer, get, makeKey, post, useServer } from "./testing/harness.ts";

const auditLog = join(tmpdir(), `mitos-self-forks-audit-${process.pid}.log`);
afterAll(() => rmSync(auditLog, { force: true }));

describe("a fork that a sandbox asks for itself", () => {
  const at = useServer({ auth: true, auditLog });
  const idOf = (key: string) => at.engine.keys.find(key)!.id;
  const made = async () => ({ children: [], pausedMs: 0, snapshotBytes: 0 }) satisfies ForkResult;
  const ask = (keyId: string | null, count = 1, fork: () => Promise<ForkResult> = made) => {
    const ids = Array.from({ length: count }, (_, index) => `child-${index}` as SandboxId);
    return at.engine.selfForkGate!({ source: "a-1" as SandboxId, ids, keyId } satisfies SelfFork, fork);
  };
  const lines = async (source: string) => {
    await at.server.close();
    const all = readFileSync(auditLog, "utf8").trim().split("\n");
    return all.map((line) => JSON.parse(line)).filter(({ op, sandbox_id }) => op === "fork_self" && sandbox_id === source);
  };

  it("has room where its key has, counts while it is made, and is written down", async () => {
    const key = makeKey(at, { owner: "alice", limits: { maxSandboxes: 3 } });
    await post(at, "/v1/fork", { id: "a-1", template: "python", fork_budget: 9 }, bearer(key));
    await expect(ask(idOf(key), 3)).rejects.toMatchObject({ code: "quota_exceeded", detail: { context: { op: "fork", limit: 3 } } });
    // While two are being made there is no room for a request from outside.
    const outside = await new Promise<number>((resolve, reject) => {
      const during = async () => {
        resolve((await post(at, "/v1/fork", { id: "a-2", template: "python" }, bearer(key))).status);
        return made();
      };
      ask(idOf(key), 2, during).catch(reject);
    });
    expect(outside).toBe(429);
    expect((await post(at, "/v1/fork", { id: "a-2", template: "python" }, bearer(key))).status).toBe(200);
    expect((await get(at, "/metrics", at.admin)).text).toContain('mitos_fork_duration_seconds_count{kind="self"} 1');
    const by = { key_id: idOf(key), owner: "alice", organisation: "acme" };
    expect(await lines("a-1")).toMatchObject([
      { detail: "children=child-0,child-1,child-2", ok: false, ...by },
      { detail: "children=child-0,child-1", ok: true, ...by },
    ]);
    rmSync(auditLog);
  });

  it("is refused for a key that is revoked, expired or unknown, and needs none when none gave the budget", async () => {
    const key = makeKey(at);
    await post(at, "/v1/fork", { id: "a-1", template: "python", fork_budget: 9 }, bearer(key));
    await ask(idOf(key));
    at.engine.keys.revoke(idOf(key));
    await expect(ask(idOf(key))).rejects.toMatchObject({ code: "forbidden", detail: { cause: expect.stringContaining("is revoked") } });
    await expect(ask("no-such-key")).rejects.toMatchObject({ code: "forbidden", detail: { cause: expect.stringContaining("is unknown") } });
    await ask(null);
    await at.server.close();
    rmSync(auditLog);
  });

  it("may be refused for ever, and fills no disk with it", async () => {
    await post(at, "/v1/fork", { id: "a-1", template: "python", fork_budget: 9 }, at.admin);
    for (let round = 0; round < 200; round++) await expect(ask("no-such-key")).rejects.toThrow();
    const written = (await lines("a-1")).length;
    expect(written).toBeGreaterThan(0);
    expect(written).toBeLessThan(100);
  });

  it("passes nowhere any more when the server is gone", async () => {
    await at.server.close();
    expect(at.engine.selfForkGate).toBeUndefined();
  });
});
