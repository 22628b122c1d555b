import { describe, expect, it } from "vitest";
import { get, post, send, streamAll, useServer } from "../testing/harness.ts";

describe("contexts", () => {
  const at = useServer();
  const base = "/v1/sandboxes/sb-1/contexts";
  const run = (headers: Record<string, string>) => streamAll(at, "RunCodeStream", [{ code: "1" }], headers);

  it("are made, listed, restarted and removed", async () => {
    const made = { id: "context-0", language: "bash", cwd: "/tmp", default: false };
    expect((await post(at, base, { language: "bash", cwd: "/tmp", unknown: 1 })).json).toEqual(made);
    expect((await get(at, base)).json).toEqual([made]);
    expect((await post(at, `${base}/context-0/restart`, {})).json).toEqual(made);
    expect((await send(at, "POST", `${base}/context-0/restart`)).json).toEqual(made);
    expect((await send(at, "DELETE", `${base}/context-0`)).json).toEqual({ status: "removed", id: "context-0" });
    expect((await get(at, base)).json).toEqual([]);
    expect(await send(at, "DELETE", `${base}/context-0`)).toMatchObject({ status: 404, json: { error: { code: "not_found" } } });
    expect(await post(at, `${base}/context-0/restart`, {})).toMatchObject({ status: 404, json: { error: { code: "not_found" } } });
  });

  it.each([
    [{}],
    [{ language: "ruby" }],
    [{ language: "python", cwd: "" }],
    [{ language: "python", cwd: "a\0b" }],
    [{ language: "python", cwd: "x".repeat(5000) }],
    [{ language: 1 }],
  ])("are not made of %j", async (body) => {
    expect(await post(at, base, body)).toMatchObject({ status: 400, json: { error: { code: "invalid_input" } } });
    expect(at.runtime.contexts.size).toBe(0);
  });

  it("are named by ids alone", async () => {
    expect((await post(at, `${base}/a%2Fb/restart`, {})).json.error.code).toBe("invalid_input");
    expect((await send(at, "DELETE", `${base}/${"x".repeat(65)}`)).json.error.code).toBe("invalid_input");
  });

  it("are where code runs by the header Mitos-Context, at every door that runs code", async () => {
    await run({});
    await run({ "Mitos-Context": "context-7" });
    await post(at, "/v1/run_code/stream", { sandbox: "sb-1", code: "1" }, { "Mitos-Context": "context-8" });
    expect(at.runtime.runs.map(({ context }) => context)).toEqual([undefined, "context-7", "context-8"]);
  });

  it("refuse code when the header is no id", async () => {
    const [end] = await run({ "Mitos-Context": "a b" });
    expect(end?.message.error).toMatchObject({ code: "invalid_argument", message: expect.stringContaining("Mitos-Context") });
    const legacy = await post(at, "/v1/run_code/stream", { sandbox: "sb-1", code: "1" }, { "Mitos-Context": "" });
    expect(legacy).toMatchObject({ status: 400, json: { error: { code: "invalid_input" } } });
    expect(at.runtime.runs).toEqual([]);
  });
});
