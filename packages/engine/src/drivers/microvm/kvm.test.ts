import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { findGuest } from "../host/parts.ts";
import { parseKvmProbe, probeKvm } from "./kvm.ts";

describe("what the probe of KVM says", () => {
  it.each([
    ["absent", /virtualization is switched on/],
    ["denied", /group kvm/],
    ["slow", /hardware virtualization/],
    ["processor", /x86-64/],
    ["failed", /dmesg/],
    ["of a later version", /dmesg/],
  ])("names what to do when it is %s", (why, remedy) => {
    const answer = { usable: false, micros: null, why, detail: "so it is" };
    expect(parseKvmProbe(JSON.stringify(answer))).toEqual({
      usable: false,
      micros: null,
      detail: "so it is",
      remedy: expect.stringMatching(remedy),
    });
  });

  it("is usable with the time that the loop took", () => {
    const answer = { usable: true, micros: 60, why: null, detail: "20000 rounds took 60 µs" };
    expect(parseKvmProbe(JSON.stringify(answer))).toEqual({ usable: true, micros: 60, detail: answer.detail, remedy: "" });
  });

  it.each(["", "yes", "null", "[]", "{}", '{"usable":true,"detail":"no time"}', '{"usable":"yes","micros":1,"detail":""}'])(
    "is no answer: %j",
    (text) => {
      expect(parseKvmProbe(text)).toBeUndefined();
    },
  );
});

describe("the probe of KVM on this machine", () => {
  it("says what mitos-guest has found, in one line", async () => {
    const guest = await findGuest(undefined);
    const told = JSON.parse(execFileSync(guest.path, ["kvm-probe"], { encoding: "utf8" }));
    const probe = await probeKvm(guest);
    expect(probe.usable).toBe(told.usable);
    expect(probe.usable).toBe(probe.micros !== null && probe.micros <= 5_000);
    expect(probe.detail).toMatch(/KVM|\/dev\/kvm|x86-64/);
    expect(probe.remedy === "").toBe(probe.usable);
  });

  it("is not usable when the program cannot be run, and says why", async () => {
    const probe = await probeKvm({ path: "/nonexistent/mitos-guest", hash: "" });
    expect(probe).toMatchObject({ usable: false, micros: null, detail: expect.stringContaining("ENOENT") });
  });
});
