import type { Digest } from "@mitos/engine";
import type { TemplateId } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { BuildRecords } from "./build-records.ts";

const alice = { owner: "alice", organisation: "acme" };
const digest = (n: number) => `sha256:${String(n).padStart(64, "0")}` as Digest;

describe("records of builds", () => {
  it("of one owner's files are forgotten from the oldest, and never for those of others", () => {
    const records = new BuildRecords();
    const bob = { ...alice, owner: "bob" };
    records.sent(bob, digest(0));
    for (let n = 0; n < 1000; n += 1) records.sent(alice, digest(n));
    records.sent(alice, digest(0));
    records.sent(alice, digest(1000));
    expect([0, 1, 2, 1000].map((n) => records.hasSent(alice, digest(n)))).toEqual([true, false, true, true]);
    expect(records.hasSent(bob, digest(0))).toBe(true);
    expect(records.hasSent({ owner: "bob", organisation: "other" }, digest(0))).toBe(false);
  });

  it("of the last builds are forgotten from the oldest", () => {
    const records = new BuildRecords();
    const build = (id: string) => ({ id: id as TemplateId, organisation: "acme", isPrivate: true });
    for (let n = 0; n <= 10_000; n += 1) records.tells(build(`t-${n}`));
    expect([records.lastOf("t-0" as TemplateId), records.lastOf("t-1" as TemplateId)]).toEqual([undefined, build("t-1")]);
  });
});
