import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { engineEnvironment } from "../support/engine-under-test.ts";

// The command against the real engine, as a user starts it.
const bin = path.resolve(import.meta.dirname, "../../packages/cli/bin/mitos.js");
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-cli-"));
afterAll(() => rmSync(dir, { recursive: true }));

function start(args: readonly string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [bin, ...args], {
    env: { ...process.env, ...engineEnvironment, TMPDIR: dir, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const seen = { out: "", err: "" };
  child.stdout.on("data", (data) => (seen.out += data));
  child.stderr.on("data", (data) => (seen.err += data));
  const ended = new Promise<{ code: number | null; out: string; err: string }>((resolve) =>
    child.on("close", (code) => resolve({ code, ...seen })),
  );
  return { child, seen, ended };
}

describe("mitos quickstart", () => {
  it("forks a running sandbox into three and shows that everything went on, then leaves nothing", async () => {
    const { code, out, err } = await start(["quickstart"]).ended;
    expect(code, `${out}${err}`).toBe(0);
    expect(out.match(/has all three .*file ✓ {2}variable ✓ {2}HTTP server ✓/g)).toHaveLength(3);
    expect(out.match(/sees only its own writes/g)).toHaveLength(3);
    expect(out).toContain("the parent, sees none");
    expect(out).not.toContain("✗");
    expect(readdirSync(dir)).toEqual([]);
  });

  it("cleans up when it is interrupted", async () => {
    const run = start(["quickstart"]);
    await expect.poll(() => run.seen.out, { timeout: 60_000 }).toContain("✓ create a sandbox");
    run.child.kill("SIGINT");
    expect(await run.ended).toMatchObject({ code: 130, err: expect.stringContaining("interrupted") });
    expect(readdirSync(dir)).toEqual([]);
  });
});

describe("mitos run and mitos sandbox exec", () => {
  it("pass the output and the exit code of the command through", async () => {
    const server = start(["serve", "--addr", "127.0.0.1:0", "--data-dir", path.join(dir, "data"), "--ephemeral"]);
    await expect.poll(() => server.seen.out, { timeout: 60_000 }).toContain("Mitos listens on ");
    const env = { MITOS_BASE_URL: /http:\S+/.exec(server.seen.out)![0] };
    const mitos = (...args: string[]) => start(args, env).ended;
    try {
      expect(await mitos("run", "echo out; echo err >&2; exit 7")).toMatchObject({ code: 7, out: "out\n", err: "err\n" });
      expect(await mitos("run", "--", "printf", "%s|", "--pool", "a b")).toMatchObject({ code: 0, out: "--pool|a b|" });
      expect(await mitos("run", "--timeout", "1", "sleep", "30")).toMatchObject({ code: 124 });
      const id = (await mitos("sandbox", "create")).out.trim();
      expect(await mitos("sandbox", "exec", id, "python3", "-c", "print('a b')")).toMatchObject({ code: 0, out: "a b\n", err: "" });
      const children = (await mitos("fork", id, "--count", "2")).out.trim().split("\n");
      expect(children).toHaveLength(2);
      expect(await mitos("sandbox", "exec", children[1]!, "hostname")).toMatchObject({ code: 0, out: `${children[1]}\n` });
    } finally {
      server.child.kill("SIGTERM");
      expect(await server.ended).toMatchObject({ code: 0 });
    }
  });

  it("doctor names the engine and its isolation", async () => {
    expect(await start(["doctor"]).ended).toMatchObject({ code: 0, out: expect.stringMatching(/\[PASS\] engine: gvisor: /) });
  });
});
