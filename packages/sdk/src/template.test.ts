// biome-ignore-all lint/suspicious/noTemplateCurlyInString: that is how such values are written

import { describe, expect, it } from "vitest";
import { Template } from "./template.ts";

describe("the template builder", () => {
  const example = () =>
    new Template()
      .fromImage("python:3.12")
      .workdir("/app")
      .copy("app/", "/app")
      .env("PORT", "8080")
      .run("pip install -r requirements.txt")
      .setStart("python app.py")
      .cpu("2")
      .memory("1Gi");

  it("gives the published spec, to the byte", () => {
    expect(JSON.stringify(example().toSpec())).toBe(
      '{"image":"python:3.12",' +
        '"buildSteps":[{"type":"workdir","workdir":"/app"},' +
        '{"type":"copy","source":"app/","dest":"/app"},' +
        '{"type":"env","envName":"PORT","envValue":"8080"},' +
        '{"type":"run","run":"pip install -r requirements.txt"}],' +
        '"command":["python","app.py"],' +
        '"resources":{"cpu":"2","memory":"1Gi"}}',
    );
  });

  it("gives the object of a pool", () => {
    expect(JSON.stringify(new Template().fromImage("busybox").toTemplate("tools"))).toBe(
      '{"apiVersion":"mitos.run/v1","kind":"SandboxPool","metadata":{"name":"tools"},"spec":{"template":{"image":"busybox"}}}',
    );
  });

  it("keeps the order of its steps", () => {
    const steps = new Template().fromImage("node").run("npm ci").env("A", "1").runCmd("npm run build").toSpec().buildSteps;
    expect(steps?.map((step) => (step.type === "run" ? step.run : step.type))).toEqual(["npm ci", "env", "npm run build"]);
  });

  it("takes a start command that is a list as it is", () => {
    expect(new Template().fromImage("i").setStart(["sh", "-c", "a 'b"]).toSpec().command).toEqual(["sh", "-c", "a 'b"]);
  });

  it("splits one that is a line as a shell does, and refuses one that does not end", () => {
    expect(new Template().fromImage("i").setStart("sh -c 'a b' \"c d\" e\\ f").toSpec().command).toEqual(["sh", "-c", "a b", "c d", "e f"]);
    expect(() => new Template().setStart("sh -c 'a")).toThrow(expect.objectContaining({ code: "invalid_input" }));
    expect(() => new Template().setStart([])).toThrow(expect.objectContaining({ code: "invalid_input" }));
  });

  it("leaves out what was not asked for", () => {
    expect(new Template().fromImage("busybox").toSpec()).toEqual({ image: "busybox" });
    expect(new Template().fromImage("busybox").memory("64Mi").toSpec()).toEqual({ image: "busybox", resources: { memory: "64Mi" } });
  });

  it("refuses to describe a template without an image", () => {
    for (const attempt of [() => new Template().run("x").toSpec(), () => new Template().toTemplate("t")]) {
      expect(attempt).toThrow(expect.objectContaining({ code: "invalid_input", remediation: expect.stringContaining("fromImage") }));
    }
  });

  it("gives a spec of its own each time, which nobody else changes", () => {
    const template = example();
    const first = template.toSpec();
    first.buildSteps?.pop();
    first.command?.pop();
    expect(template.toSpec()).toEqual(example().toSpec());
  });
});

describe("what the builder has beyond the published spec", () => {
  it("stands in the spec only when it was asked for, in the words of mitos.run/v1", () => {
    const template = new Template()
      .fromImage("python:3.12")
      .user("app")
      .setStart("serve")
      .readyHttp(8080, { path: "/up", timeoutSeconds: 9 })
      .warm("import json")
      .network({ egress: "deny", allowDomains: ["pypi.org:443"], block: false })
      .ignore("tests");
    expect(template.toSpec()).toEqual({
      image: "python:3.12",
      buildSteps: [{ type: "user", user: "app" }],
      command: ["serve"],
      workload: { command: ["serve"], ready: { port: 8080, path: "/up", expect: 200, timeoutSeconds: 9 } },
      network: { egress: "deny", allow: ["pypi.org:443"] },
      warmKernel: true,
      warm: { language: "python", code: "import json" },
      ignore: ["tests"],
    });
  });

  it("has three ways to say when a program is ready", () => {
    const ready = (template: Template) => template.toSpec().workload?.ready;
    const started = () => new Template().fromImage("i").setStart("serve");
    expect(ready(started().readyPort(1))).toEqual({ kind: "port", port: 1 });
    expect(ready(started().readyHttp(2))).toEqual({ port: 2, path: "/", expect: 200 });
    expect(ready(started().readyCommand("pg_isready", { timeoutSeconds: 3 }))).toEqual({
      kind: "command",
      command: "pg_isready",
      timeoutSeconds: 3,
    });
  });

  it("starts the image's own program, or a command, whichever was said last", () => {
    const template = new Template().fromImage("i").setStart("serve").entrypoint();
    expect(template.toSpec()).toEqual({ image: "i", workload: { entrypoint: true } });
    expect(template.setStart("serve").toSpec()).toEqual({ image: "i", command: ["serve"] });
  });

  it("refuses to wait for a program that nothing starts", () => {
    expect(() => new Template().fromImage("i").readyPort(80).toSpec()).toThrow(
      expect.objectContaining({ code: "invalid_input", remediation: expect.stringContaining("setStart") }),
    );
  });

  it("takes warm code alone, with its language, and with a time-out", () => {
    const warm = (template: Template) => template.toSpec().warm;
    expect(warm(new Template().fromImage("i").warm("javascript", "1"))).toEqual({ language: "javascript", code: "1" });
    expect(warm(new Template().fromImage("i").warm({ code: "1", timeoutSeconds: 5 }))).toEqual({
      language: "python",
      code: "1",
      timeoutSeconds: 5,
    });
  });
});

describe("a template from a spec", () => {
  const spec = {
    image: "python:3.12",
    buildSteps: [
      { type: "run", run: "make" },
      { type: "env", envName: "A", envValue: "${B}", expand: true },
      { type: "workdir", workdir: "/app" },
      { type: "user", user: "app" },
      { type: "copy", source: ".", dest: "." },
    ],
    command: ["serve"],
    resources: { cpu: "2", memory: "1Gi" },
    workload: { command: ["serve"], ready: { kind: "command", command: "true", timeoutSeconds: 5 } },
    network: { blockNetwork: true, egress: "allow", allow: ["a:1"], allowCidrs: ["10.0.0.0/8"], inbound: "allow", inboundCidrs: ["::/0"] },
    warmKernel: true,
    warm: { language: "bash", code: "true", timeoutSeconds: 3 },
    ignore: ["x"],
  };

  it("is what the spec says, whole", () => {
    expect(Template.fromSpec(spec).toSpec()).toEqual(spec);
    expect(Template.fromSpec({ apiVersion: "mitos.run/v1", kind: "SandboxPool", spec: { template: spec } }).toSpec()).toEqual(spec);
    expect(Template.fromSpec({ image: "i", workload: { entrypoint: true, ready: { port: 1 } } }).toSpec()).toEqual({
      image: "i",
      workload: { entrypoint: true, ready: { port: 1 } },
    });
    expect(Template.fromSpec({ image: "i", init: ["a", "b"] }).toSpec().buildSteps).toEqual([
      { type: "run", run: "a" },
      { type: "run", run: "b" },
    ]);
  });

  it.each([
    ["it is not an object with an `image`", "text"],
    ["image is not a text", {}],
    ["volumes is not a member of a template that is built here", { image: "i", volumes: [] }],
    ["workload.env is not a member of a template that is built here", { image: "i", workload: { env: [] } }],
    ["buildSteps is not a list", { image: "i", buildSteps: {} }],
    ["buildSteps[1].run is not a text", { image: "i", buildSteps: [{ type: "run", run: "x" }, { type: "run" }] }],
    ['buildSteps[0].type is "add", not run, env, workdir, user or copy', { image: "i", buildSteps: [{ type: "add" }] }],
    ["command is not a list of texts", { image: "i", command: [1] }],
    ["workload.ready.port is not a number", { image: "i", workload: { ready: { port: "80" } } }],
    ["warm.code is not a text", { image: "i", warm: {} }],
  ])("is refused: %s", (errorCause, value) => {
    expect(() => Template.fromSpec(value)).toThrow(expect.objectContaining({ code: "invalid_input", errorCause }));
  });
});
