import { limits } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { BuildSlots } from "./build-slots.ts";

const alice = { owner: "alice", organisation: "acme" };

describe("places for builds", () => {
  it("are limited for each owner, of whatever kind they are, and free again when one is done", () => {
    const slots = new BuildSlots(100);
    const taken = Array.from({ length: limits.buildsPerOwnerMax }, (_, n) => slots.take("create_template", `template ${n}`, alice));
    const one = () => slots.take("pull_image", "image x:1", alice);
    const context = { op: "pull_image", dimension: "builds", limit: limits.buildsPerOwnerMax };
    expect(one).toThrow(
      expect.objectContaining({ code: "quota_exceeded", detail: expect.objectContaining({ context, retryAfterMs: 5000 }) }),
    );
    slots.take("create_template", "template 0", { ...alice, organisation: "other" })[Symbol.dispose]();
    taken[0]![Symbol.dispose]();
    one()[Symbol.dispose]();
  });

  it("are limited for all together, and without keys only so", () => {
    const slots = new BuildSlots(6);
    const taken = Array.from({ length: 6 }, (_, n) => slots.take("create_template", `template ${n}`, undefined));
    const limit = expect.objectContaining({ context: { op: "create_template", dimension: "builds", limit: 6 } });
    expect(() => slots.take("create_template", "template x", alice)).toThrow(expect.objectContaining({ detail: limit }));
    for (const place of taken) place[Symbol.dispose]();
    slots.take("create_template", "template x", alice)[Symbol.dispose]();
  });

  it("are one for requests for the same thing, until the last of them is done", () => {
    const slots = new BuildSlots(1);
    const first = slots.take("create_template", "template a", alice);
    const second = slots.take("create_template", "template a", alice);
    first[Symbol.dispose]();
    const other = () => slots.take("create_template", "template b", alice);
    expect(other).toThrow(expect.objectContaining({ code: "quota_exceeded" }));
    second[Symbol.dispose]();
    other()[Symbol.dispose]();
  });
});
