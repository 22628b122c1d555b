import { describe, expect, it } from "vitest";
import { Quiet } from "./quiet.ts";

function guest() {
  const told: string[] = [];
  const quiesce = async () => {
    told.push("quiesce");
    return { resume: async () => void told.push("resume") };
  };
  return { told, quiesce };
}

describe("the quiet of a snapshot", () => {
  it("is begun once, also when a snapshot that did not fit is taken in another place, and ended once", async () => {
    const parent = guest();
    const quiet = new Quiet(parent);
    await quiet.begin();
    await quiet.begin();
    await quiet.end();
    await quiet.end();
    expect(parent.told).toEqual(["quiesce", "resume"]);
  });

  it("of a snapshot that failed before it asked for it is no quiet", async () => {
    const parent = guest();
    const quiet = new Quiet(parent);
    await quiet.end();
    expect(parent.told).toEqual([]);
    expect(quiet.pausedMs).toBe(0);
  });

  it("that the guest refused is not ended", async () => {
    const quiet = new Quiet({ quiesce: () => Promise.reject(new Error("busy")) });
    await expect(quiet.begin()).rejects.toThrow("busy");
    await quiet.end();
    expect(quiet.pausedMs).toBe(0);
  });

  it("counts both, when the first was given back before the second place was tried", async () => {
    const parent = guest();
    const quiet = new Quiet(parent);
    await quiet.begin();
    await quiet.end();
    const first = quiet.pausedMs;
    await quiet.begin();
    await quiet.end();
    expect(first).toBeGreaterThan(0);
    expect(quiet.pausedMs).toBeGreaterThan(first);
    expect(parent.told).toEqual(["quiesce", "resume", "quiesce", "resume"]);
  });
});
