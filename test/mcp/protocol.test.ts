import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bin, initialize, type RawMcp, request, startRaw } from "./support/programs.ts";

// The lines themselves. No tool is called that needs a server.
let mcp: RawMcp;
beforeAll(async () => {
  mcp = startRaw(["--server", "http://127.0.0.1:9"]);
  mcp.write(initialize);
  await mcp.next();
});
afterAll(() => mcp[Symbol.asyncDispose]());

async function answerTo(line: string) {
  mcp.write(line);
  return mcp.next();
}

const error = (id: unknown, code: number) => ({ jsonrpc: "2.0", id, error: { code, message: expect.stringMatching(/\w/) } });

describe("a line", () => {
  it.each(["", "nonsense", '{"jsonrpc":"2.0",', "\u0000\u0001", `${"[".repeat(200_000)}`])(
    "that is not JSON is answered -32700, case %#",
    async (line) => {
      // An empty line is none.
      if (line === "") return expect(await answerTo(`\n\r\n${request(1, "ping")}`)).toMatchObject({ id: 1, result: {} });
      expect(await answerTo(line)).toEqual(error(null, -32_700));
    },
  );

  it.each([
    ["null", null],
    ["5", null],
    ["[]", null],
    [`[${request(1, "ping")}]`, null],
    ["{}", null],
    ['{"jsonrpc":"1.0","id":7,"method":"ping"}', 7],
    ['{"jsonrpc":"2.0","id":"seven"}', "seven"],
    ['{"jsonrpc":"2.0","id":7,"method":5}', 7],
    ['{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}', 7],
    ['{"jsonrpc":"2.0","id":null,"method":"ping"}', null],
    ['{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}', null],
  ])("that is JSON and no message is answered -32600: %s", async (line, id) => {
    expect(await answerTo(line)).toEqual(error(id, -32_600));
  });

  it("with an unknown method is answered -32601, also for what this server does not offer", async () => {
    for (const method of ["nope", "resources/list", "prompts/list", "logging/setLevel", "completion/complete", "tasks/list"]) {
      expect(await answerTo(request(2, method, { level: "info" }))).toEqual(error(2, -32_601));
    }
  });

  it("with wrong params is answered -32602", async () => {
    for (const [method, params] of [
      ["initialize", {}],
      ["initialize", { protocolVersion: 5, capabilities: {}, clientInfo: { name: "x", version: "1" } }],
      ["tools/call", undefined],
      ["tools/call", {}],
      ["tools/call", { name: 5 }],
      ["tools/call", { name: "sandbox_list", arguments: [] }],
      ["tools/call", { name: "sandbox_list", arguments: "x" }],
      ["tools/list", { cursor: "next" }],
    ] as const) {
      expect(await answerTo(request(3, method, params)), `${method} ${JSON.stringify(params)}`).toEqual(error(3, -32_602));
    }
  });

  it("of more than 16 MiB is answered -32600 and passed over, one of 16 MiB is taken", async () => {
    expect(await answerTo(request(4, "ping", { padding: "x".repeat(16 * 1024 * 1024) }))).toEqual(error(null, -32_600));
    const room = 16 * 1024 * 1024 - request(5, "ping", { padding: "" }).length;
    expect(await answerTo(request(5, "ping", { padding: "x".repeat(room) }))).toMatchObject({ id: 5, result: {} });
  });

  it("may come in pieces, several at a time, and end with CR LF", async () => {
    const line = request(6, "ping", { text: "grüße" });
    const bytes = Buffer.from(`${line}\r\n${request(7, "ping")}\n`);
    const cut = bytes.indexOf("ü") + 1;
    mcp.child.stdin.write(bytes.subarray(0, cut));
    mcp.child.stdin.write(bytes.subarray(cut));
    expect([(await mcp.next()).id, (await mcp.next()).id]).toEqual([6, 7]);
  });

  it("that comes last is read without a newline too", async () => {
    for (const [last, answer] of [
      [request(9, "ping"), { id: 9, result: {} }],
      ["nonsense", error(null, -32_700)],
    ] as const) {
      await using fresh = startRaw(["--server", "http://127.0.0.1:9"]);
      fresh.write(initialize);
      await fresh.next();
      fresh.child.stdin.end(last);
      expect(await fresh.next()).toMatchObject(answer);
      expect(await fresh.ended).toBe(0);
    }
  });

  it("of any kind does not end the program", async () => {
    const seed = Number(process.env.MITOS_SEED ?? Math.floor(Math.random() * 2 ** 31));
    let state = seed;
    const random = (below: number) => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
      return state % below;
    };
    const samples = [initialize, request(8, "tools/list"), request(8, "tools/call", { name: "sandbox_fork", arguments: {} })];
    for (let round = 0; round < 300; round++) {
      const bytes = Buffer.from(samples[random(samples.length)]!);
      for (let change = 0; change <= random(4); change++) bytes[random(bytes.length)] = random(256);
      mcp.child.stdin.write(bytes);
      mcp.child.stdin.write("\n");
    }
    mcp.write(request(999_999, "ping"));
    for (let answer = await mcp.next(); answer.id !== 999_999; answer = await mcp.next()) {
      expect(answer, `MITOS_SEED=${seed}`).toMatchObject({ jsonrpc: "2.0" });
      expect("result" in answer !== "error" in answer, `MITOS_SEED=${seed}: ${JSON.stringify(answer)}`).toBe(true);
    }
  });
});

describe("initialize", () => {
  it.each([
    ["2025-11-25", "2025-11-25"],
    ["2025-06-18", "2025-06-18"],
    ["2025-03-26", "2025-03-26"],
    ["2024-11-05", "2024-11-05"],
    ["1999-01-01", "2025-11-25"],
  ])("with revision %s is answered with %s, and what that revision does not know is left out", async (wanted, answered) => {
    await using fresh = startRaw(["--server", "http://127.0.0.1:9"]);
    fresh.write(initialize.replace("2025-06-18", wanted));
    expect((await fresh.next()).result).toEqual({
      protocolVersion: answered,
      capabilities: { tools: { listChanged: false } },
      serverInfo: { name: "mitos-mcp", title: "Mitos sandboxes", version: "0.1.0" },
      instructions: expect.stringContaining("sandbox_create"),
    });
    fresh.write(request(1, "tools/list"));
    const { tools } = (await fresh.next()).result as { tools: Record<string, unknown>[] };
    const exec = tools.find(({ name }) => name === "sandbox_exec")!;
    expect("outputSchema" in exec).toBe(answered >= "2025-06-18");
    expect("annotations" in exec).toBe(answered >= "2025-03-26");
  });
});

describe("the command line", () => {
  const run = (args: readonly string[], env: Record<string, string> = {}) =>
    promisify(execFile)(bin, [...args], { env: { PATH: process.env.PATH, ...env } }).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({ code, stdout, stderr }),
    );

  it("shows help and version", async () => {
    expect(await run(["--version"])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^mitos-mcp 0\.1\.0 \(node \d/) });
    const { stdout, code } = await run(["--help"]);
    for (const flag of [
      "--server",
      "--token",
      "--ephemeral",
      "--enable-workspace-tools",
      "--http",
      "--addr",
      "--http-token",
      "--help",
      "--version",
    ]) {
      expect(stdout).toContain(flag);
    }
    expect(code).toBe(0);
  });

  it("refuses what it cannot do with exit code 2 and the next step", async () => {
    const secret = "short-secret";
    for (const [args, env] of [
      [["--nope"]],
      [["stray"]],
      [["--addr", "127.0.0.1:1"]],
      [["--server", `http://user:${secret}@127.0.0.1:1`]],
      [["--server", "ftp://127.0.0.1"]],
      [["--http", "--addr", "nonsense"]],
      [["--http", "--addr", "0.0.0.0:0"]],
      [["--http", "--addr", "[::]:0"]],
      [["--http", "--addr", ":0"]],
      [["--http", "--http-token", secret]],
      [["--http"], { MITOS_MCP_TOKEN: `with blanks ${secret}` }],
    ] as [string[], Record<string, string>?][]) {
      const { code, stderr, stdout } = await run(args, env);
      expect({ code, stdout }, args.join(" ")).toEqual({ code: 2, stdout: "" });
      expect(stderr).toMatch(/^error: .+\nnext step: .+\n$/);
      expect(stderr).not.toContain(secret);
    }
  });

  it("says at the start where it leads, and of the key only whether there is one", async () => {
    const key = "key-of-the-mitos-server-0123456789";
    await using withKey = startRaw(["--server", "http://127.0.0.1:9", "--token", key]);
    withKey.child.stdin.end();
    expect(await withKey.ended).toBe(0);
    expect(withKey.said()).toBe("mitos-mcp 0.1.0, server http://127.0.0.1:9, token set, stdio\n");
    await using without = startRaw([], { MITOS_BASE_URL: "http://127.0.0.1:10" });
    without.child.stdin.end();
    await without.ended;
    expect(without.said()).toBe("mitos-mcp 0.1.0, server http://127.0.0.1:10, token unset, stdio\n");
  });
});
