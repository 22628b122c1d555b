import { inspect } from "node:util";
import { AgentRunError } from "@mitos/sdk";
import { FLAVOR, MitosSandboxComponent, MitosSandboxConfig } from "@mitos/sdk/integrations/zenml";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { runWithoutFrameworks } from "../support/consumer.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

let live: LiveServer;
beforeAll(async () => {
  live = await startLiveServer();
});
afterAll(() => live.close());

const sandboxes = () => live.engine.list({}).map(({ id }) => id as string);

describe("a component", () => {
  it("is provisioned once, however often it is asked for, and taken down", async () => {
    const component = new MitosSandboxComponent(new MitosSandboxConfig({ baseUrl: live.url }));
    const [one, two] = await Promise.all([component.provision(), component.provision()]);
    expect(one).toBe(two);
    expect(await component.provision()).toBe(component.sandbox);
    expect(sandboxes()).toEqual([component.sandbox.id]);
    await component.deprovision();
    await component.deprovision();
    expect(sandboxes()).toEqual([]);
    expect((await component.provision()).id).not.toBe(one.id);
    await component.deprovision();
  });

  it("runs commands and code, and has files", async () => {
    await using component = new MitosSandboxComponent({ baseUrl: live.url });
    await component.provision();
    const outcome = { stdout: "out\n", stderr: "err\n", exit_code: 2, exec_time_ms: expect.any(Number) };
    expect(await component.runCommand("echo out; echo err >&2; exit 2")).toEqual(outcome);
    await expect(component.runCommand("sleep 30", 1)).rejects.toMatchObject({ code: "exec_timeout" });
    await component.writeFile("/workspace/a.txt", "hello");
    expect(await component.readFile("/workspace/a.txt")).toBe("hello");
    expect((await component.listFiles("/workspace")).map(({ name }) => name)).toEqual(["a.txt"]);
    expect((await component.runCode("x = 40")).error).toBeNull();
    expect(await component.runCodeDict("x + 2")).toEqual({
      text: "42",
      logs: { stdout: [], stderr: [] },
      results: [{ data: { "text/plain": "42" }, is_main_result: true }],
      error: null,
    });
  });

  it("has the template and reach of its configuration, whose key is in no output", async () => {
    const config = new MitosSandboxConfig({ template: "base", baseUrl: live.url, apiKey: "secret-key-of-mine", network: { block: true } });
    expect(config).toMatchObject({ template: "base", baseUrl: live.url, apiKey: "secret-key-of-mine" });
    await using component = new MitosSandboxComponent(config);
    const { id } = await component.provision();
    expect(await live.engine.get(id as never)).toMatchObject({ templateId: "base", network: { block: true } });
    expect(inspect([config, component], { depth: null }) + JSON.stringify([config, component])).not.toContain("secret-key-of-mine");
  });

  it("says what to do when it is not provisioned", async () => {
    const component = new MitosSandboxComponent();
    await expect(component.runCommand("true")).rejects.toMatchObject({
      code: "failed_precondition",
      remediation: expect.stringContaining("provision()"),
    });
    expect(() => component.sandbox).toThrow(AgentRunError);
  });

  it("can be provisioned again after a failure", async () => {
    const component = new MitosSandboxComponent({ baseUrl: live.url, template: "../x" });
    await expect(component.provision()).rejects.toMatchObject({ code: "invalid_input" });
    await expect(component.provision()).rejects.toMatchObject({ code: "invalid_input" });
    await component.deprovision();
  });
});

it("a flavour cannot be had: there is no ZenML for JavaScript", () => {
  expect(MitosSandboxComponent.FLAVOR).toBe(FLAVOR);
  const flavor = () => MitosSandboxComponent.flavor();
  expect(flavor).toThrow(
    expect.objectContaining({ code: "integration_dependency_missing", status: 501, remediation: expect.stringContaining("mitos-run") }),
  );
});

it("no framework is needed at all", () => {
  const program = `
    import { MitosSandboxComponent } from "@mitos/sdk/integrations/zenml";
    await using component = new MitosSandboxComponent({ baseUrl: ${JSON.stringify("http://127.0.0.1:1")} });
    await component.provision().catch((error) => console.log(error.code));
  `;
  expect(runWithoutFrameworks(program)).toBe("transport_error\n");
});
