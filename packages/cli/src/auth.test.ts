import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { openKeys } from "@mitos/engine";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { duration } from "./context.ts";
import { bin, type Ended, firstLine, start } from "./testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-cli-auth-"));
const dataDir = path.join(dir, "data");
const configDir = path.join(dir, "config");
const auditLog = path.join(dir, "audit.log");
const credentials = path.join(configDir, "credentials.json");
const serveArgs = ["serve", "--auth", "--engine", "mock", "--addr", "127.0.0.1:0", "--data-dir", dataDir, "--audit-log", auditLog];

let url: string;
let server: ReturnType<typeof start>;
let adminKey: string;
/** Everything that any command printed, for the search for keys. */
const printed: Ended[] = [];
/** What was meant to be printed: by `keys create`. */
const keys: string[] = [];

async function mitos(...args: string[]): Promise<Ended> {
  const ended = await start(args, { HOME: dir, MITOS_CONFIG_DIR: configDir, ...(url ? { MITOS_BASE_URL: url } : {}) }).ended;
  printed.push(ended);
  return ended;
}

async function createKey(...args: string[]): Promise<string> {
  const ended = await mitos("auth", "keys", "create", ...args);
  expect(ended).toMatchObject({
    code: 0,
    out: expect.stringMatching(/^mitos_sk_[\w-]{43}\n$/),
    err: expect.stringContaining("not shown again"),
  });
  printed.pop();
  keys.push(ended.out.trim());
  return keys.at(-1)!;
}

beforeAll(async () => {
  // Standard output is a pipe here, such as a journal: no key is printed into it.
  expect(await start(serveArgs, { HOME: dir }).ended).toMatchObject({
    code: 2,
    out: "",
    err: expect.stringMatching(/^error: --auth needs a key.*\nnext step: Make one first: mitos auth keys create --data-dir /),
  });
  adminKey = await createKey("--data-dir", dataDir, "--name", "admin", "--scopes", "admin", "--owner", "root@example.org", "--org", "acme");
  server = start(serveArgs, { HOME: dir });
  url = (await firstLine(server)).replace("Mitos listens on ", "");
  expect(url, server.seen.err).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
});
afterAll(async () => {
  server.child.kill("SIGTERM");
  await server.ended;
  rmSync(dir, { recursive: true });
});

// Each command is a process of its own, which takes its time on a busy machine.
const timeout = 120_000;

describe("auth", { timeout }, () => {
  it("refuses everything before a login, and says what to do", async () => {
    expect(await mitos("sandbox", "ls")).toMatchObject({
      code: 1,
      out: "",
      err: expect.stringMatching(/^error: the key is missing or wrong\ncause: .*\nnext step: /),
    });
    expect(await mitos("auth", "login", "--token", "mitos_sk_wrong")).toMatchObject({ code: 1, out: "" });
    expect(existsSync(credentials)).toBe(false);
    expect(await mitos("auth", "login")).toMatchObject({ code: 2 });
  });

  it("login keeps a key that the server knows, for the user alone", async () => {
    expect(await mitos("auth", "login", "--token", adminKey)).toMatchObject({
      code: 0,
      err: "",
      out: "logged in as root@example.org (default org acme)\n",
    });
    expect(JSON.parse(readFileSync(credentials, "utf8"))).toEqual({ token: adminKey, email: "root@example.org", default_org: "acme" });
    expect(statSync(credentials).mode & 0o777).toBe(0o600);
    expect(statSync(configDir).mode & 0o777).toBe(0o700);
    expect(readdirSync(configDir)).toEqual(["credentials.json"]);
    expect(await mitos("auth", "whoami")).toMatchObject({ code: 0, out: "root@example.org\norgs: acme\nscopes: admin\n" });
    expect((await mitos("sandbox", "ls")).out).toBe("No sandboxes found.\n");
  });

  it("keys are made, listed and revoked", async () => {
    const key = await createKey(
      "--name",
      "ci",
      "--owner",
      "ci-bot",
      "--scopes",
      "read",
      "--ttl",
      "1h30m",
      "--max-sandboxes",
      "3",
      "--rate",
      "50",
    );
    const listed = await mitos("auth", "keys", "ls");
    const [header, ...rows] = listed.out
      .trimEnd()
      .split("\n")
      .map((line) => line.split(/ {2,}/));
    expect(header).toEqual(["ID", "NAME", "PREFIX", "SCOPES", "STATUS"]);
    expect(rows).toEqual([
      [expect.stringMatching(/^key-/), "admin", adminKey.slice(0, 13), "admin", "active"],
      [expect.stringMatching(/^key-/), "ci", key.slice(0, 13), "read", "active"],
    ]);
    expect((await mitos("auth", "keys", "list", "--org", "nobody")).out).toBe("No API keys found.\n");

    expect((await mitos("--api-key", key, "auth", "whoami")).out).toBe("ci-bot\norgs: acme\nscopes: read\n");
    expect(await mitos("--api-key", key, "sandbox", "create")).toMatchObject({
      code: 1,
      err: expect.stringMatching(/^error: this is not allowed\ncause: .*scope lifecycle/),
    });

    const id = rows[1]![0]!;
    expect(await mitos("auth", "keys", "revoke", id)).toMatchObject({ code: 0, out: `revoked ${id}\n` });
    expect(await mitos("--api-key", key, "auth", "whoami")).toMatchObject({ code: 1, err: expect.stringContaining("is revoked") });
    expect((await mitos("auth", "keys", "ls")).out).toMatch(/ ci .*read +revoked\n$/);
    expect((await mitos("auth", "keys", "revoke", "key-none")).code).toBe(3);
  });

  it("a limit of a key is told with what it is and when to try again", async () => {
    const key = await createKey("--name", "small", "--owner", "small", "--max-sandboxes", "1");
    expect((await mitos("--api-key", key, "sandbox", "create")).code).toBe(0);
    expect(await mitos("--api-key", key, "sandbox", "create")).toMatchObject({
      code: 1,
      err: expect.stringMatching(/^error: the quota of the key is used up\ncause: .*\nnext step: Terminate/),
    });
  });

  it.each([
    [["auth", "keys", "create"]],
    [["auth", "keys", "create", "--name", "x", "--ttl", "forever"]],
    [["auth", "keys", "ls", "--data-dir", path.join(dir, "nowhere")]],
  ])("exits with 2 for mitos %j", async (args) => {
    expect(await mitos(...args)).toMatchObject({ code: 2, out: "" });
  });

  it("does not open the data directory of a running server", async () => {
    expect(await mitos("auth", "keys", "ls", "--data-dir", dataDir)).toMatchObject({
      code: 1,
      err: expect.stringContaining("another server uses this data directory"),
    });
  });

  it("durations are Go's, and days", () => {
    expect(["0", "90s", "1h30m", "720h", "7d"].map(duration("--ttl"))).toEqual([0, 90, 5400, 2_592_000, 604_800]);
    for (const wrong of ["", "1", "1w", "-1h", "1h 30m", "h"]) expect(() => duration("--ttl")(wrong), wrong).toThrow(/--ttl/);
  });

  it("logout forgets the key", async () => {
    expect(await mitos("auth", "logout")).toMatchObject({ code: 0, out: "logged out\n" });
    expect(existsSync(credentials)).toBe(false);
    expect((await mitos("auth", "whoami")).code).toBe(1);
  });

  it("no key is in any output, log, audit line or file of the server", () => {
    expect(keys).toHaveLength(3);
    const files = readdirSync(dataDir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    const everything = [
      JSON.stringify(printed),
      server.seen.out,
      server.seen.err,
      readFileSync(auditLog, "latin1"),
      ...files.map((entry) => readFileSync(path.join(entry.parentPath, entry.name), "latin1")),
    ].join("\n");
    expect(everything).toContain("create_key");
    for (const key of keys) expect(everything.includes(key)).toBe(false);
    for (const key of keys) expect(everything.includes(key.slice("mitos_sk_".length + 4))).toBe(false);
  });
});

describe("serve --auth", { timeout }, () => {
  it("shows the first key on a terminal, once, and keeps it nowhere", async () => {
    const fresh = path.join(dir, "fresh");
    const onTerminal = async () => {
      const words = [
        process.execPath,
        bin,
        "serve",
        "--auth",
        "--engine",
        "mock",
        "--addr",
        "127.0.0.1:0",
        "--data-dir",
        fresh,
        "--ephemeral",
      ];
      const env = { PATH: process.env.PATH, HOME: dir };
      const terminal = spawn("script", ["-qefc", `exec ${words.join(" ")}`, "/dev/null"], { stdio: ["pipe", "pipe", "inherit"], env });
      let out = "";
      terminal.stdout.on("data", (data) => (out += data));
      const ended = once(terminal, "close");
      await expect.poll(() => out, { timeout: 60_000 }).toMatch(/keys +required/);
      terminal.stdin.write("\x03");
      expect((await ended)[0]).toBe(0);
      return out;
    };
    const key = /mitos_sk_[\w-]{43}/.exec(await onTerminal())?.[0];
    expect(key).toBeDefined();
    expect(await onTerminal()).not.toMatch(/mitos_sk_/);
    {
      using store = openKeys(fresh);
      expect(store.find(key!)).toMatchObject({ scopes: ["admin"] });
    }
    expect(
      readdirSync(fresh).some(
        (name) => statSync(path.join(fresh, name)).isFile() && readFileSync(path.join(fresh, name), "latin1").includes(key!),
      ),
    ).toBe(false);
  });

  it("may be reached from other machines, and then says that TLS belongs in front", async () => {
    await createKey("--data-dir", path.join(dir, "open"), "--name", "admin", "--scopes", "admin");
    const again = start([...serveArgs.slice(0, 4), "--addr", "0.0.0.0:0", "--data-dir", path.join(dir, "open"), "--ephemeral"], {
      HOME: dir,
    });
    const port = /:(\d+)$/.exec(await firstLine(again))?.[1];
    expect(again.seen.out).toMatch(/reverse proxy with TLS/);
    expect((await fetch(`http://127.0.0.1:${port}/v1/health`)).status).toBe(401);
    expect((await fetch(`http://127.0.0.1:${port}/v1/health`, { headers: { Authorization: `Bearer ${keys.at(-1)}` } })).status).toBe(200);
    again.child.kill("SIGTERM");
    expect((await again.ended).code).toBe(0);
  });

  it("does not start with an audit log that it cannot write", async () => {
    const args = [...serveArgs.slice(0, 6), "--data-dir", path.join(dir, "open"), "--audit-log", path.join(dir, "none", "audit.log")];
    expect(await start(args, { HOME: dir }).ended).toMatchObject({
      code: 1,
      err: expect.stringMatching(/^error: the audit log cannot be written/),
    });
  });
});
