import { type Engine, openEngine, type TemplateRequest, type Workload } from "@mitos/engine";
import { resourceDefaults, toSandboxId, toTemplateId } from "@mitos/protocol";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineOptions } from "../support/engine-under-test.ts";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";

let live: LiveEngine;
let engine: Engine;

beforeAll(async () => {
  live = await startLiveEngine();
  engine = live.engine;
});

afterAll(async () => {
  await live.close(engine);
});

function request(id: string, workload?: Workload): TemplateRequest {
  const network = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] } as const;
  return { id: toTemplateId(id), network, resources: resourceDefaults, workload };
}

async function start(template: string, name: string) {
  const id = toSandboxId(name);
  await engine.create({
    template: toTemplateId(template),
    id,
    env: { FROM_CREATE: "yes" },
    secrets: {},
    timeoutSeconds: null,
    idleTimeoutSeconds: null,
    metadata: {},
  });
  return engine.runtime(id);
}

describe("a template", () => {
  it("wakes its sandboxes with a warm Python kernel that knows their environment", async () => {
    await engine.createTemplate(request("python"));
    const runtime = await start("python", "coder");
    const texts: string[] = [];
    for await (const { msg } of runtime.runCode({
      code: "import os; os.environ['FROM_CREATE']",
      language: "python",
      timeoutMs: 10_000,
    })) {
      if (msg.case === "result") texts.push(msg.value.text);
    }
    expect(texts).toEqual(["'yes'"]);
  });

  it("wakes its sandboxes with its program running and ready", async () => {
    const command = ["python3", "-m", "http.server", "8123", "--bind", "127.0.0.1", "--directory", "/etc"];
    await engine.createTemplate(
      request("web", { command, env: {}, ready: { kind: "http", port: 8123, path: "/passwd", expect: 200, timeoutSeconds: 60 } }),
    );
    const runtime = await start("web", "served");
    const tunnel = await runtime.tunnel(8123);
    await tunnel.send(Buffer.from("GET /passwd HTTP/1.0\r\n\r\n"));
    const answer = Buffer.concat(await Array.fromAsync(tunnel)).toString();
    expect(answer).toContain("200 OK");
    expect(answer).toContain("root:");
  });

  it("is not made, and says what its program printed, when that ends before it is ready", async () => {
    const command = ["sh", "-c", "echo no licence found >&2; exit 3"];
    const broken = request("broken", { command, env: {}, ready: { kind: "http", port: 8123, path: "/", expect: 200, timeoutSeconds: 30 } });
    await expect(engine.createTemplate(broken)).rejects.toMatchObject({
      code: "build_failed",
      detail: { cause: expect.stringMatching(/exit code 3[\s\S]*no licence found/) },
    });
    expect(engine.listTemplates().map(({ id }) => String(id))).not.toContain("broken");
  });

  it("is ready at once for a server that was closed with its sandboxes kept", async () => {
    await engine.createTemplate(request("base"));
    await engine.close({ sandboxes: "keep" });
    engine = await openEngine({ dataDir: live.dataDir, ...engineOptions, log: quiet });
    const [before] = engine.listTemplates().filter(({ id }) => id === "base");
    const again = await engine.createTemplate(request("base"));
    expect(again.createdAtMs).toBe(before?.createdAtMs);
    await expect(start("base", "late")).resolves.toBeDefined();
  });
});
