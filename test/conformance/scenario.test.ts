import { SandboxServer } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

// The scenario that every client of the family runs against every server (specification: conformance, 1). Order matters.
describe.each([
  ["mock", "mock"],
  [engineUnderTest, "real"],
] as const)("the shared client scenario on the %s engine", (_name, engine) => {
  let live: LiveServer;
  let server: SandboxServer;
  beforeAll(async () => {
    live = await startLiveServer(engine);
    server = new SandboxServer(live.url);
  });
  afterAll(() => live.close());

  it("create_template", async () => {
    expect(await server.createTemplate("conf-template", { initWaitSeconds: 1 })).toMatchObject({ id: "conf-template", ready: true });
  });

  it("list_templates_contains", async () => {
    expect(await server.listTemplates()).toContainEqual(expect.objectContaining({ id: "conf-template", ready: true }));
  });

  it("fork", async () => {
    const sandbox = await server.fork("conf-template", "conf-sandbox");
    expect(sandbox.id).toBe("conf-sandbox");
    expect(sandbox.endpoint).not.toBe("");
  });

  it("list_sandboxes_contains", async () => {
    expect(await server.listSandboxes()).toContainEqual(expect.objectContaining({ id: "conf-sandbox", templateId: "conf-template" }));
  });

  it("terminate", async () => {
    const [row] = (await server.listSandboxes()).filter(({ id }) => id === "conf-sandbox");
    expect(row).toBeDefined();
    const answer = await fetch(`${live.url}/v1/sandboxes/conf-sandbox`, { method: "DELETE" });
    expect(await answer.json()).toEqual({ status: "terminated", id: "conf-sandbox" });
    expect((await server.listSandboxes()).map(({ id }) => id)).not.toContain("conf-sandbox");
  });
});
