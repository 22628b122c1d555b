import { describe, expect, it } from "vitest";
import { z } from "zod";
import { post, send, useServer } from "../testing/harness.ts";
import { firstObject, tolerate } from "./tolerance.ts";

describe("keys and nulls", () => {
  const schema = z
    .object({
      id: z.string(),
      count: z.int().optional(),
      timeout_seconds: z.int().nullable().optional(),
      env: z.record(z.string(), z.string()).nullish(),
      nested: z
        .object({ vcpu_count: z.int().optional() })
        .transform((value) => value)
        .nullish(),
      list: z.array(z.object({ port: z.int() })).optional(),
    })
    .refine(() => true);

  it.each([
    [
      { ID: "a", Timeout_Seconds: 3 },
      { id: "a", timeout_seconds: 3 },
    ],
    [{ ID: "other case", id: "exact" }, { id: "exact" }],
    [{ id: "exact", ID: "other case" }, { id: "exact" }],
    [
      { nested: { VCPU_Count: 2 }, list: [{ PORT: 1 }] },
      { nested: { vcpu_count: 2 }, list: [{ port: 1 }] },
    ],
    [{ env: { Path: "a", PATH: "b", Gone: null } }, { env: { Path: "a", PATH: "b", Gone: null } }],
    [{ count: null, nested: { vcpu_count: null }, id: null }, { nested: {} }],
    [
      { timeout_seconds: null, env: null },
      { timeout_seconds: null, env: null },
    ],
    [
      { unknown: null, Other: 1 },
      { unknown: null, Other: 1 },
    ],
    [[], []],
    [null, null],
  ])("reads %j as %j", (value, expected) => {
    expect(tolerate(schema, value)).toEqual(expected);
  });

  it("makes no prototype of a member of that name", () => {
    const value = tolerate(schema, JSON.parse('{"__proto__":{"id":"x"},"constructor":1}')) as { id?: string };
    expect(value.id).toBeUndefined();
    expect({}).not.toHaveProperty("id");
  });
});

describe("the first object of a text", () => {
  it.each([
    ['{"a":1}', '{"a":1}'],
    [' \n{"a":{"b":[1,{}]}}{"c":2}', '{"a":{"b":[1,{}]}}'],
    ['{"a":"}\\"{\\\\"} tail', '{"a":"}\\"{\\\\"}'],
    ['{"a":1', '{"a":1'],
    ['[{"a":1}] x', '[{"a":1}] x'],
    ["", ""],
  ])("of %j is %j", (text, expected) => {
    expect(firstObject(text)).toBe(expected);
  });
});

describe("on the routes", () => {
  const at = useServer();

  it("creating templates and sandboxes takes keys in any case, nulls, unknown members and what follows the object", async () => {
    const network = { EGRESS: "allow", Allow_Domains: ["example.com:443"], block: null };
    const template = `${JSON.stringify({ ID: "t", Init_Wait_Seconds: null, Network: network, later: {}, Resources: { Mem_Size_Mib: 256 } })}\n{"id":"no"} ]`;
    const made = await send(at, "POST", "/v1/templates", template);
    expect([made.status, made.json]).toMatchObject([
      200,
      { id: "t", network: { egress: "allow", allow_domains: ["example.com:443"] }, resources: { mem_size_mib: 256 } },
    ]);
    expect(
      (await send(at, "POST", "/v1/fork", '{"Id":"a","TEMPLATE":"t","Env":{"Path":"x"},"timeout_seconds":null} trailing')).json.id,
    ).toBe("a");
    expect(at.engine.creates.at(-1)).toMatchObject({ template: "t", env: { Path: "x" }, timeoutSeconds: null });
    expect((await send(at, "POST", "/v1/sandboxes/a/fork", '{"ID":"b","count":null,"ids":null,"Pause_Source":true}}')).json.id).toBe("b");
  });

  it("the life-cycle routes want the whole body to be one object", async () => {
    expect((await send(at, "POST", "/v1/pause", '{"Sandbox":"sb-1"}')).status).toBe(200);
    for (const path of ["/v1/set_timeout", "/v1/pause", "/v1/resume"]) {
      const { status, json } = await send(at, "POST", path, '{"sandbox":"sb-1","timeout_seconds":9} x');
      expect([status, json.error.code]).toEqual([400, "invalid_json"]);
    }
  });

  it("no route asks for a Content-Type, or minds another one", async () => {
    for (const type of [undefined, "text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded"]) {
      const headers: Record<string, string> = type ? { "Content-Type": type } : {};
      expect((await post(at, "/v1/templates", { id: "python" }, headers)).status).toBe(200);
    }
  });
});
