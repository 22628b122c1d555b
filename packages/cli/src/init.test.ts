import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { configFiles } from "./commands/doctor.ts";
import { type Ended, firstLine, start } from "./testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-init-"));
const configDir = path.join(dir, "config");
const file = path.join(configDir, "config.json");
const data = ["--data-dir", path.join(dir, "data")];

let server: ReturnType<typeof start>;
let url: string;
let key: string;

const mitos = (args: readonly string[], env: Record<string, string> = {}): Promise<Ended> =>
  start(args, { HOME: dir, MITOS_CONFIG_DIR: configDir, ...env }).ended;

beforeAll(async () => {
  key = (await mitos(["auth", "keys", "create", "--name", "me", "--owner", "me@example.org", "--scopes", "read", ...data])).out.trim();
  await mitos(["auth", "keys", "create", "--name", "admin", "--scopes", "admin", ...data]);
  server = start(["serve", "--auth", "--engine", "mock", "--addr", "127.0.0.1:0", ...data], { HOME: dir });
  url = (await firstLine(server)).replace("Mitos listens on ", "");
  expect(url, server.seen.err).toMatch(/^http:/);
});
afterAll(async () => {
  server.child.kill("SIGTERM");
  await server.ended;
  rmSync(dir, { recursive: true });
});

it("exits with 2 when no key is known, and when --check finds none", async () => {
  expect(await mitos(["init", "--server", url])).toMatchObject({
    code: 2,
    out: "",
    err: expect.stringMatching(/^error: no key is known\n/),
  });
  expect(await mitos(["init", "--check"])).toMatchObject({ code: 2, out: "", err: expect.stringContaining("config.json is missing") });
});

it("exits with 1 for a key that the server rejects, and keeps nothing", async () => {
  const rejected = await mitos(["init", "--server", url, "--api-key", "mitos_sk_wrong"]);
  expect(rejected).toMatchObject({ code: 1, out: "", err: expect.stringMatching(/^error: the key is missing or wrong/) });
  expect((await mitos(["init", "--check"])).code).toBe(2);
});

it("keeps a key that is valid with its server, for the user alone, and later commands use both", async () => {
  const saved = await mitos(["init", "--server", url.replace("http://", "")], { MITOS_API_KEY: key });
  expect(saved).toMatchObject({ code: 0, err: "", out: `saved to ${file}: the key 'me' of me@example.org at ${url}\n` });
  expect(JSON.parse(readFileSync(file, "utf8"))).toEqual({ endpoint: url, api_key: key });
  expect([statSync(file).mode & 0o777, statSync(configDir).mode & 0o777]).toEqual([0o600, 0o700]);
  expect(await mitos(["init", "--check"])).toMatchObject({ code: 0, out: `valid: the key 'me' of me@example.org at ${url}\n` });
  expect(await mitos(["auth", "whoami", "--json"])).toMatchObject({ code: 0, out: expect.stringContaining('"me@example.org"') });
  expect((await mitos(["auth", "whoami"], { MITOS_BASE_URL: url })).code).toBe(0);
});

it("sends the kept key to no other server, and prefers what is said now", async () => {
  // The same server by another name is another host as far as a key is concerned.
  const other = url.replace("127.0.0.1", "localhost");
  expect(await mitos(["--server", other, "auth", "whoami"])).toMatchObject({ code: 1, err: expect.stringContaining("the key is missing") });
  expect((await mitos(["--server", other, "--api-key", key, "auth", "whoami"])).code).toBe(0);
  expect(await mitos(["auth", "whoami"], { MITOS_BASE_URL: "127.0.0.1:2" })).toMatchObject({
    code: 1,
    err: expect.stringContaining("http://127.0.0.1:2"),
  });
});

it("the doctor warns of a file that others can read or that says nothing, and shows no key", async () => {
  vi.stubEnv("MITOS_CONFIG_DIR", configDir);
  expect(await configFiles()).toMatchObject({ verdict: "PASS", detail: "config.json, for you alone" });
  writeFileSync(path.join(configDir, "credentials.json"), "{}", { mode: 0o644 });
  expect(await configFiles()).toMatchObject({ verdict: "WARN", remediation: expect.stringContaining("chmod 600") });
  rmSync(path.join(configDir, "credentials.json"));
  writeFileSync(file, `{"api_key": "${key}"`);
  const broken = await configFiles();
  vi.unstubAllEnvs();
  expect(broken).toMatchObject({ verdict: "WARN", remediation: expect.stringContaining("mitos init") });
  expect(JSON.stringify(broken)).not.toContain(key);
  expect((await mitos(["init", "--check"])).code).toBe(2);
});

it("says what to do when the configuration cannot be written", async () => {
  writeFileSync(path.join(dir, "a-file"), "");
  const failed = await mitos(["init", "--server", url, "--api-key", key], { MITOS_CONFIG_DIR: path.join(dir, "a-file") });
  expect(failed).toMatchObject({
    code: 1,
    err: expect.stringMatching(/^error: .*cannot be written\ncause: .*\nnext step: .*MITOS_CONFIG_DIR/),
  });
});
