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
