import { describe, expect, it } from "vitest";
import { Admission, hostAvailableBytes, meminfoAvailableBytes } from "./admission.ts";

const MiB = 1024 * 1024;

describe("admission", () => {
  it("gives a share of what is available, counts what is promised, and takes it back", () => {
    const admission = new Admission(() => 1000 * MiB);
    const first = admission.reserve("create", 800 * MiB);
    expect(() => admission.reserve("fork", 100 * MiB)).toThrow(
      expect.objectContaining({ code: "quota_exceeded", detail: expect.objectContaining({ retryAfterMs: expect.any(Number) }) }),
    );
    expect(() => admission.reserve("fork", 50 * MiB)).not.toThrow();
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    expect(admission.reservedBytes).toBe(50 * MiB);
    expect(() => admission.reserve("fork", 700 * MiB)).not.toThrow();
  });

  it("follows the memory of the host", () => {
    expect(meminfoAvailableBytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")).toBe(2 * MiB);
    expect(hostAvailableBytes()).toBeGreaterThan(0);
  });
});
