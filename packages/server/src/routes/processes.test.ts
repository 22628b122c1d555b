import { describe, expect, it } from "vitest";
import { b64, get, post, useServer } from "../testing/harness.ts";

describe("background processes", () => {
  const at = useServer();
  const base = "/v1/sandboxes/sb-1/processes";

  it("are started from a command or from args, and listed", async () => {
    expect((await post(at, base, { command: "sleep 1", env: { A: "1" }, cwd: "/tmp", user: "nobody" })).json).toEqual({
      pid: 42,
      started_unix: 1_700_000_000,
    });
    await post(at, base, { args: ["top"], pty: { cols: 100 }, stdin: true });
    expect(at.runtime.starts).toMatchObject([
      { shellCommand: "sleep 1", env: { A: "1" }, cwd: "/tmp", user: "nobody", stdin: false },
      { argv: ["top"], stdin: true, pty: { cols: 100, rows: 24 } },
    ]);
    expect((await get(at, base)).json).toEqual([
      { pid: 42, command: "x", started_unix: 1_700_000_000, state: "running", exit_code: null, stdout_bytes: 11, stderr_bytes: 0 },
    ]);
  });

  it.each([
    {},
    { command: "a", args: ["b"] },
    { args: [] },
    { args: [""] },
    { command: "" },
    { command: "x", pty: { cols: 0 } },
    { command: "x", stdin: 1 },
  ])("refuse %j", async (body) => {
    expect((await post(at, base, body)).json.error.code).toBe("invalid_input");
    expect(at.runtime.starts).toEqual([]);
  });

  it("tell their output from an offset, and gaps as gaps", async () => {
    const { headers, text } = await get(at, `${base}/42/output?stdout_from=2&follow=true`);
    expect(headers["content-type"]).toBe("application/x-ndjson");
    expect(
      text
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line)),
    ).toEqual([
      { gap: { stream: "stdout", from: 2, to: 6 } },
      { stream: "stdout", offset: 6, data: b64("world") },
      { exit: { exit_code: 0, signal: 0, timed_out: false, exec_time_ms: 1 } },
    ]);
    const rest = await get(at, `${base}/42/output?stdout_from=8`);
    expect(JSON.parse(rest.text)).toEqual({ stream: "stdout", offset: 8, data: b64("rld") });
  });

  it("end their output with an error where it cannot go on, after what there was", async () => {
    const { status, text } = await get(at, `${base}/44/output?follow=true`);
    const lines = text.trim().split("\n");
    expect([status, lines.length]).toEqual([200, 2]);
    expect(JSON.parse(lines[1]!).error).toMatchObject({ code: "sandbox_not_running", remediation: expect.stringMatching(/./) });
  });

  it("take input, signals and sizes", async () => {
    for (const [route, body] of [
      ["stdin", { data: b64("hi"), close: true }],
      ["signal", { signal: 15 }],
      ["resize", { cols: 120, rows: 40 }],
    ] as const) {
      expect((await post(at, `${base}/42/${route}`, body)).json).toEqual({ status: "ok" });
    }
    expect(at.runtime.signals).toEqual([
      ["stdin", 42, "hi", true],
      ["signal", 42, 15, true],
      ["resize", 42, 120, 40],
    ]);
    for (const [route, body] of [
      ["stdin", {}],
      ["stdin", { data: "not base64!" }],
      ["signal", { signal: 65 }],
      ["resize", { cols: 70_000, rows: 1 }],
    ] as const) {
      expect((await post(at, `${base}/42/${route}`, body)).status).toBe(400);
    }
  });

  it("are not_found when unknown, and malformed pids invalid", async () => {
    expect((await get(at, `${base}/43/output`)).json.error.code).toBe("not_found");
    for (const pid of ["1", "0", "-3", "x", "4.5", "99999999999"]) expect((await get(at, `${base}/${pid}/output`)).status).toBe(400);
  });
});
