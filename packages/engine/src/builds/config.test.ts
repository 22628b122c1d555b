// biome-ignore-all lint/suspicious/noTemplateCurlyInString: that is how such values are written
import { describe, expect, it } from "vitest";
import type { BuildStep } from "../actions.ts";
import { emptyConfig, expandSteps } from "./config.ts";

const env = (name: string, value: string, expand?: true): BuildStep => ({ kind: "env", name, value, ...(expand ? { expand } : {}) });
const expanded = (base: Record<string, string>, ...steps: BuildStep[]) =>
  expandSteps(steps, { ...emptyConfig, env: base }).map((step) => step.kind === "env" && `${step.name}=${step.value}`);

describe("the value of an env step", () => {
  it("is taken as it is unless it asks to be expanded", () => {
    expect(expanded({ A: "1" }, env("B", "${A}"), env("C", "${A}", true))).toEqual(["B=${A}", "C=1"]);
  });

  it("sees what the image and the steps before it say, and not itself", () => {
    const path = env("PATH", "/opt/bin:${PATH}", true);
    expect(expanded({ PATH: "/bin" }, path, path)).toEqual(["PATH=/opt/bin:/bin", "PATH=/opt/bin:/opt/bin:/bin"]);
  });

  it("has nothing for what nobody says, but the usual folders for PATH", () => {
    expect(expanded({}, env("A", "<${B}${constructor}>", true), env("PATH", "/x:${PATH}", true))).toEqual([
      "A=<>",
      "PATH=/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]);
  });

  it("is refused when it grows without measure", () => {
    const doubling = Array.from({ length: 40 }, () => env("A", "${A}${A}", true));
    expect(() => expanded({ A: "xxxxxxxx" }, ...doubling)).toThrow(expect.objectContaining({ code: "invalid_input" }));
  });
});
