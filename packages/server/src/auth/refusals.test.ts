import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { ApiKey } from "@mitos/engine";
import { MitosError } from "@mitos/protocol";
import { Counter } from "prom-client";
import { afterAll, describe, expect, it } from "vitest";
import type { AuditEvent } from "../audit.ts";
import { bearer, get, makeKey, post, unary, useServer } from "../testing/harness.ts";
import { Refusals } from "./refusals.ts";

const auditLog = path.join(tmpdir(), `mitos-refusals-audit-${process.pid}.log`);
afterAll(() => rmSync(auditLog, { force: true }));

/** With a clock that a test moves. */
function open(record: (event: AuditEvent) => void) {
  const at = { nowMs: 0, errors: 0 };
  const failed = () => {
    at.errors += 1;
  };
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => failed() };
  const count = new Counter({ name: "refusals", help: "-", labelNames: ["code"], registers: [] });
  const refusals = new Refusals({ record, close: async () => {} }, count, log, () => at.nowMs);
  return { at, count, refusals };
}

const unknown = { error: new MitosError("unauthorized"), caller: undefined, address: "10.0.0.1" };
const key = (id: string) => ({ id, owner: "alice", organisation: "acme" }) as ApiKey;

describe("refused requests", () => {
  it("have a hundred lines at once and one a second, each key its own; what is left out is counted and told", async () => {
    const lines: AuditEvent[] = [];
    const { at, count, refusals } = open((event) => lines.push(event));
    for (let n = 0; n < 150; n += 1) refusals.note(unknown);
    expect(lines).toHaveLength(100);
    refusals.note({ ...unknown, error: new MitosError("forbidden"), caller: key("k-1"), op: "GET /metrics" });
    expect(lines.at(-1)).toEqual({
      sandbox_id: "",
      op: "refused",
      detail: "code=forbidden op=GET /metrics from=10.0.0.1 left_out=50",
      ok: false,
      key_id: "k-1",
      owner: "alice",
      organisation: "acme",
    });
    refusals.note(unknown);
    at.nowMs += 1_000;
    refusals.note(unknown);
    expect(lines).toHaveLength(102);
    expect(lines.at(-1)).toMatchObject({ detail: "code=unauthorized from=10.0.0.1 left_out=1" });
    expect((await count.get()).values.map(({ labels, value }) => [labels.code, value])).toEqual([
      ["unauthorized", 152],
      ["forbidden", 1],
    ]);
  });

  it("for their pace are counted only", async () => {
    const lines: AuditEvent[] = [];
    const { count, refusals } = open((event) => lines.push(event));
    refusals.note({ ...unknown, error: new MitosError("rate_limited") });
    expect(lines).toEqual([]);
    expect((await count.get()).values).toMatchObject([{ labels: { code: "rate_limited" }, value: 1 }]);
  });

  it("stay refused when the audit log cannot be written", () => {
    const { at, refusals } = open(() => {
      throw new Error("ENOSPC");
    });
    refusals.note(unknown);
    expect(at.errors).toBe(1);
  });
});

describe("a server with keys and an audit log", () => {
  const at = useServer({ auth: true, auditLog });

  it("writes down who was refused at which door, never what was presented, and where programs may not connect", async () => {
    const reader = makeKey(at, { owner: "reader", scopes: ["read"] });
    const wrong = "mitos_sk_wrong-7f3a";
    await get(at, `/v1/sandboxes?key=${wrong}`, bearer(wrong));
    await get(at, `/${wrong}`);
    await post(at, "/v1/fork", { id: "x", template: "python" }, bearer(reader));
    await unary(at, "Stat", { path: "/" }, bearer(reader));
    await get(at, "/v1/health", bearer(reader));
    for (const tell of at.engine.egressDenied) tell({ id: "sb-1", to: "pypi.org:443", leftOut: 3 });
    const { text } = await get(at, "/metrics", at.admin);
    expect(text).toContain('mitos_auth_refusals_total{code="unauthorized"} 2');
    expect(text).toContain('mitos_auth_refusals_total{code="forbidden"} 2');
    await at.server.close();
    expect(at.engine.egressDenied.size).toBe(0);

    const written = readFileSync(auditLog, "utf8");
    for (const hidden of [wrong, reader, "7f3a"]) expect(written).not.toContain(hidden);
    const lines = written
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
      .filter(({ op }) => op === "refused" || op === "egress_denied");
    expect(lines).toMatchObject([
      { op: "refused", ok: false, detail: "code=unauthorized from=127.0.0.1" },
      { op: "refused", ok: false, detail: "code=unauthorized from=127.0.0.1" },
      { op: "refused", ok: false, detail: "code=forbidden op=POST /v1/fork from=127.0.0.1", owner: "reader", organisation: "acme" },
      { op: "refused", ok: false, detail: "code=forbidden op=Stat from=127.0.0.1", owner: "reader", organisation: "acme" },
      { op: "egress_denied", ok: false, sandbox_id: "sb-1", detail: "to=pypi.org:443 left_out=3" },
    ]);
    expect(lines[0]).not.toHaveProperty("key_id");
  });
});
