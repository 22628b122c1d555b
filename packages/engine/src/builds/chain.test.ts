import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import type { BuildStep } from "../actions.ts";
import { baseKey, canonical, stepKey } from "./chain.ts";
import { emptyConfig } from "./config.ts";
import { digestOf } from "./testing.ts";

const manifest = digestOf("a manifest");
const start = baseKey({ manifest });

/** By the words of docs/builds.md. */
function written(previous: string, fingerprint: string): string {
  const raw = Buffer.from(previous.slice(7), "hex");
  return `sha256:${createHash("sha256")
    .update(Buffer.concat([raw, Buffer.from(`\0${fingerprint}`)]))
    .digest("hex")}`;
}

describe("the name of a step's result", () => {
  const context = digestOf("files");
  it.each<[BuildStep, string]>([
    [{ kind: "run", command: "make all" }, "run\0make all"],
    [{ kind: "env", name: "A", value: "b=c" }, "env\0A\0b=c"],
    [{ kind: "workdir", path: "/srv" }, "workdir\0/srv"],
    [{ kind: "user", user: "app:staff" }, "user\0app:staff"],
    [{ kind: "copy", source: "what it was called", dest: "/app/", context }, `copy\0${context}\0/app/`],
  ])("is what is written of it: %o", (step, fingerprint) => {
    expect(stepKey(start, step)).toBe(written(start, fingerprint));
  });

  it("begins with the digest of the image's manifest", () => {
    expect(start).toBe(`sha256:${createHash("sha256").update(`base\0${manifest}`).digest("hex")}`);
  });

  it("is another upon another base, or other layers or configuration of a template", () => {
    const layers = [{ id: digestOf("one") }];
    const bases = [
      start,
      baseKey({ manifest: digestOf("another") }),
      baseKey({ layers, config: emptyConfig }),
      baseKey({ layers, config: { ...emptyConfig, user: "app" } }),
      baseKey({ layers: [...layers, { id: digestOf("two") }], config: emptyConfig }),
    ];
    expect(new Set(bases.map((base) => stepKey(base, { kind: "run", command: "make" }))).size).toBe(bases.length);
  });

  it("depends on no order of members", () => {
    expect(canonical({ b: 1, a: { d: [2, { f: 3, e: 4 }], c: null } })).toBe(canonical({ a: { c: null, d: [2, { e: 4, f: 3 }] }, b: 1 }));
  });
});
