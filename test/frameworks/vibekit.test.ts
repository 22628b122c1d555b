import { inspect } from "node:util";
import { MitosVibeKitProvider, MitosVibeKitSandbox } from "@mitos/sdk/integrations/vibekit";
import { VibeKit } from "@vibe-kit/sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { runWithoutFrameworks } from "../support/consumer.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

/** What is waited for comes at once, but not on a machine that is busy. */
const soon = { timeout: 20_000 };

let live: LiveServer;
let provider: MitosVibeKitProvider;
beforeAll(async () => {
  live = await startLiveServer();
  provider = new MitosVibeKitProvider({ baseUrl: live.url });
});
afterAll(() => live.close());

// Without an agent's answer nothing is asked of a model, so its key is never used.
const agent = { type: "claude", provider: "anthropic", apiKey: "model-key", model: "some-model" } as const;

describe("the published VibeKit", () => {
  let vibekit: VibeKit;
  beforeAll(() => {
    vibekit = new VibeKit().withAgent(agent).withSandbox(provider).withSecrets({ GH_TOKEN: "gh-secret" });
  });
  afterAll(() => vibekit.kill());

  const session = async () => (await vibekit.getSession())!;

  it("runs commands in its folder, with its agent's key and its secrets as variables", async () => {
    const seen: string[] = [];
    vibekit.on("stdout", (text) => seen.push(String(text)));
    const result = await vibekit.executeCommand('pwd; echo "$ANTHROPIC_API_KEY $GH_TOKEN"; echo oh >&2; exit 3');
    expect(result).toEqual({ sandboxId: await session(), exitCode: 3, stdout: "/vibe0\nmodel-key gh-secret\n", stderr: "oh\n" });
    expect(seen[0]).toBe(`{"type": "start", "sandbox_id": "${await session()}"}`);
    vibekit.removeAllListeners();
  });

  it("hears what a command prints while it runs", async () => {
    const seen: string[] = [];
    vibekit.on("stdout", (text) => seen.push(String(text)));
    const work = vibekit.executeCommand(`echo '{"step": 1}'; until test -e /tmp/go; do sleep 0.05; done; echo '{"step": 2}'`);
    await expect.poll(() => seen.some((text) => text.includes('"step": 1')), soon).toBe(true);
    expect(seen.some((text) => text.includes('"step": 2'))).toBe(false);
    await (await provider.resume(await session())).writeFile("/tmp/go", "");
    expect(await work).toMatchObject({ exitCode: 0 });
    vibekit.removeAllListeners();
  });

  it("leaves a server running in the background, and reaches it from outside", async () => {
    expect(await vibekit.executeCommand("exec python3 -m http.server 5678 --bind 127.0.0.1", { background: true })).toMatchObject({
      exitCode: 0,
    });
    const url = await vibekit.getHost(5678);
    await expect.poll(async () => (await fetch(url).catch(() => undefined))?.status, soon).toBe(200);
  });

  it("pauses and resumes with the state as it was, its server and secrets included", async () => {
    await vibekit.executeCommand("echo kept > state");
    const id = await session();
    await vibekit.pause();
    await expect.poll(async () => (await live.engine.get(id as never)).state, soon).toBe("paused");
    await vibekit.resume();
    expect(await vibekit.executeCommand("cat state; echo $GH_TOKEN")).toMatchObject({ sandboxId: id, stdout: "kept\ngh-secret\n" });
    expect((await fetch(await vibekit.getHost(5678))).status).toBe(200);
  });

  it("goes on with a session of an earlier program", async () => {
    const later = new VibeKit()
      .withAgent(agent)
      .withSandbox(provider)
      .withSession(await session());
    expect(await later.executeCommand("cat state")).toMatchObject({ stdout: "kept\n" });
  });

  it("reports a command whose time is up, with code and remedy", async () => {
    const printed = vi.spyOn(console, "error").mockImplementation(() => undefined);
    vibekit.on("stderr", () => undefined);
    await expect(vibekit.executeCommand("exec sleep 5353", { timeoutMs: 900 })).rejects.toThrow(/\[exec_timeout\].*remediation: /);
    printed.mockRestore();
    expect(await vibekit.executeCommand("pgrep -f 'sleep 535[3]'")).toMatchObject({ exitCode: 1 });
    vibekit.removeAllListeners();
  });

  it("kills its sandbox, whose session cannot be taken up again", async () => {
    const short = (await provider.asVibeKit()).withAgent(agent);
    await short.executeCommand("true");
    const id = (await short.getSession())!;
    await short.kill();
    const printed = vi.spyOn(console, "error").mockImplementation(() => undefined);
    const late = new VibeKit().withAgent(agent).withSandbox(provider).withSession(id);
    await expect(late.executeCommand("true")).rejects.toThrow(/\[idle_timeout\].*remediation: /);
    printed.mockRestore();
  });
});

describe("a sandbox of the provider", () => {
  let sandbox: MitosVibeKitSandbox;
  beforeAll(async () => {
    sandbox = await provider.create("python");
  });
  afterAll(() => sandbox.kill());

  it("runs commands and code, and has files", async () => {
    expect(provider.name).toBe("mitos");
    expect(sandbox.id).toBe(sandbox.sandboxId);
    expect(await sandbox.runCommand("echo out; echo err >&2; exit 4")).toEqual({
      stdout: "out\n",
      stderr: "err\n",
      exit_code: 4,
      exec_time_ms: expect.any(Number),
    });
    expect((await sandbox.execute("echo alias")).stdout).toBe("alias\n");
    await expect(sandbox.runCommand("sleep 30", 1)).rejects.toMatchObject({ code: "exec_timeout" });
    await sandbox.writeFile("/workspace/a.txt", "hällo");
    expect(await sandbox.readFile("/workspace/a.txt")).toBe("hällo");
    expect((await sandbox.listFiles("/workspace")).map(({ name }) => name)).toEqual(["a.txt"]);
    expect((await sandbox.runCode("kept = 3; kept")).text).toBe("3");
  });

  it("forks into children that go on from its state", async () => {
    const children = await sandbox.fork(2);
    for (const child of children) {
      expect(child).toBeInstanceOf(MitosVibeKitSandbox);
      expect((await child.runCode("kept")).text).toBe("3");
      await child.close();
      await child.kill();
    }
  });

  it("gives its secrets to children only when told to", async () => {
    await using secretive = await provider.create({ TOKEN: "t" }, "claude", "/vibe0/deep");
    expect((await secretive.listFiles("/vibe0")).map(({ name }) => name)).toEqual(["deep"]);
    await expect(secretive.fork()).rejects.toMatchObject({ code: "secret_inheritance_denied" });
    const [child] = await secretive.fork(1, { inheritSecrets: true });
    expect((await child!.runCommand("echo $TOKEN")).stdout).toBe("t\n");
    await child!.kill();
  });

  it("is of the template and reach that the provider was given, or the call", async () => {
    const egress = { allowDomains: ["api.example.com:443"] };
    const other = new MitosVibeKitProvider({ baseUrl: live.url, template: "base", network: egress });
    await using first = await other.create({});
    await using second = await other.create("node", { network: { block: true } });
    expect(await live.engine.get(first.id as never)).toMatchObject({
      templateId: "base",
      network: { allowDomains: ["api.example.com:443"] },
    });
    expect(await live.engine.get(second.id as never)).toMatchObject({ templateId: "node", network: { block: true } });
  });
});

describe("what is wrong", () => {
  afterEach(() => {
    vi.restoreAllMocks();
  });

  it.each<[string, () => Promise<unknown>, RegExp]>([
    ["an unknown session", () => provider.resume("nobody"), /\[not_found\].*remediation: /],
    ["an id that is none", () => provider.resume("../x"), /\[invalid_sandbox_id\].*remediation: /],
    ["a variable without a name", () => provider.create({ "": "x" }), /\[invalid_input\].*remediation: /],
  ])("is told in a message with code and remedy: %s", async (_what, call, message) => {
    await expect(call()).rejects.toThrow(message);
  });

  it("never shows the key", async () => {
    const nowhere = new MitosVibeKitProvider({ baseUrl: "http://127.0.0.1:1", apiKey: "secret-key-of-mine" });
    const error = (await nowhere.create({ SECRET: "another-secret" }).catch((reason: unknown) => reason)) as Error;
    expect(error.message).toMatch(/\[transport_error\]/);
    const shown = inspect([nowhere, error], { depth: null });
    for (const secret of ["secret-key-of-mine", "another-secret"]) expect(shown).not.toContain(secret);
  });

  it("is not a missing VibeKit, which only asVibeKit needs: it names the package to install", () => {
    const program = `
      import { MitosVibeKitProvider } from "@mitos/sdk/integrations/vibekit";
      const provider = new MitosVibeKitProvider({ baseUrl: ${JSON.stringify(live.url)} });
      await provider.asVibeKit().catch((error) => console.log(error.code, error.status, error.remediation));
    `;
    expect(runWithoutFrameworks(program)).toMatch(/^integration_dependency_missing 501 .*npm install @vibe-kit\/sdk/);
  });
});
