import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { EngineOptions, Log } from "../actions.ts";
import type { Driver, Isolation, ProbeResult } from "../driver.ts";
import * as firecracker from "./firecracker/index.ts";
import * as gvisor from "./gvisor/index.ts";
import * as microvm from "./microvm/index.ts";
import { pickDriver } from "./pick.ts";
import { surveyEngines } from "./survey.ts";

// Which machine this is decides what is usable: the probes are told here, so that every case is seen on every machine.
vi.mock("./firecracker/index.ts");
vi.mock("./gvisor/index.ts");
vi.mock("./microvm/index.ts");

const dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-pick-"));
afterAll(() => rmSync(dataDir, { recursive: true }));

const logged: [fields: object, message: string][] = [];
const log: Log = { debug: () => {}, info: (...line) => logged.push(line), warn: (...line) => logged.push(line), error: () => {} };
const usable = new Set<Isolation>();

function probed(isolation: Isolation): ProbeResult {
  const isUsable = usable.has(isolation);
  const detail = isUsable ? "it was tried" : `${isolation} lacks a part`;
  return { usable: isUsable, isolation, detail, remedies: isUsable ? [] : [`Get the part of ${isolation}.`], weaknesses: [] };
}

beforeEach(() => {
  usable.clear();
  logged.length = 0;
  vi.mocked(gvisor.probeGvisor).mockImplementation(async () => probed("gvisor"));
  vi.mocked(microvm.probeMicrovm).mockImplementation(async ({ accel }) => probed(`microvm-${accel}`));
  vi.mocked(firecracker.probeFirecracker).mockImplementation(async () => probed("microvm-firecracker"));
  vi.mocked(firecracker.createFirecrackerDriver).mockImplementation(async () => ({ isolation: "microvm-firecracker" }) as Driver);
  vi.mocked(gvisor.createGvisorDriver).mockImplementation(async () => ({ isolation: "gvisor" }) as Driver);
  vi.mocked(microvm.createMicrovmDriver).mockImplementation(async ({ accel }) => ({ isolation: `microvm-${accel}` }) as Driver);
});

async function picked(options: Omit<EngineOptions, "dataDir" | "log">, ...inUse: Isolation[]): Promise<Isolation> {
  return (await pickDriver({ ...options, dataDir, log }, new Set(inUse))).isolation;
}

describe("the engine auto", () => {
  it.each<[here: Isolation[], inUse: Isolation[], taken: Isolation]>([
    [["microvm-kvm", "microvm-tcg", "gvisor"], [], "microvm-kvm"],
    [["microvm-tcg", "gvisor"], [], "gvisor"],
    [["gvisor"], [], "gvisor"],
    [["microvm-kvm", "gvisor"], ["gvisor"], "gvisor"],
    [["microvm-kvm", "microvm-tcg", "gvisor"], ["microvm-tcg"], "microvm-tcg"],
    [["microvm-kvm", "gvisor"], ["mock"], "microvm-kvm"],
    [["microvm-firecracker", "gvisor"], [], "gvisor"],
    [["microvm-kvm", "microvm-firecracker"], ["microvm-firecracker"], "microvm-firecracker"],
  ])("on a machine with %j, with sandboxes of %j, is %s", async (here, inUse, taken) => {
    for (const isolation of here) usable.add(isolation);
    expect(await picked({ engine: "auto" }, ...inUse)).toBe(taken);
  });

  it("says in the log what it took, and why not a better one", async () => {
    usable.add("gvisor");
    await picked({ engine: "auto" });
    expect(logged).toEqual([
      [{ isolation: "gvisor", detail: "it was tried", notTaken: ["microvm-kvm: microvm-kvm lacks a part"] }, "this is how sandboxes run"],
    ]);
  });

  it("never emulates by itself, and refuses with what every other way lacks", async () => {
    usable.add("microvm-tcg");
    await expect(picked({ engine: "auto" })).rejects.toMatchObject({
      code: "not_supported",
      detail: {
        message: "no engine can run sandboxes on this machine",
        cause: "microvm-kvm: microvm-kvm lacks a part; gvisor: gvisor lacks a part",
        remediation: "Get the part of microvm-kvm. Get the part of gvisor. `mitos doctor` says more.",
      },
    });
  });

  it("does not leave living sandboxes behind for an engine that works", async () => {
    usable.add("gvisor");
    await expect(picked({ engine: "auto" }, "microvm-kvm")).rejects.toMatchObject({
      code: "not_supported",
      detail: { cause: "microvm-kvm: microvm-kvm lacks a part" },
    });
  });
});

describe("an engine that is named", () => {
  it("is taken, or refused with what it lacks, whatever else works", async () => {
    for (const isolation of ["microvm-kvm", "microvm-tcg"] as const) usable.add(isolation);
    expect(await picked({ engine: "microvm" })).toBe("microvm-kvm");
    expect(await picked({ engine: "microvm", accel: "kvm" })).toBe("microvm-kvm");
    expect(await picked({ engine: "microvm", accel: "tcg" })).toBe("microvm-tcg");
    await expect(picked({ engine: "gvisor" })).rejects.toMatchObject({
      code: "not_supported",
      detail: { message: "gvisor cannot run sandboxes on this machine", remediation: "Get the part of gvisor. `mitos doctor` says more." },
    });
  });

  it("names --accel tcg where microVMs are wanted and KVM is not usable", async () => {
    for (const isolation of ["microvm-tcg", "gvisor"] as const) usable.add(isolation);
    await expect(picked({ engine: "microvm" })).rejects.toMatchObject({
      code: "not_supported",
      detail: { remediation: expect.stringContaining("--accel tcg") },
    });
  });

  it("has an accelerator only if it is microvm", async () => {
    for (const engine of ["auto", "gvisor", "mock"] as const) {
      await expect(picked({ engine, accel: "tcg" })).rejects.toMatchObject({
        code: "invalid_input",
        detail: { remediation: expect.stringContaining("--engine microvm") },
      });
    }
  });

  it.each<[engine: "gvisor" | "microvm" | "firecracker" | "mock", inUse: Isolation, flags: string]>([
    ["gvisor", "microvm-kvm", "--engine microvm "],
    ["gvisor", "microvm-tcg", "--engine microvm --accel tcg"],
    ["microvm", "gvisor", "--engine gvisor"],
    ["microvm", "microvm-firecracker", "--engine firecracker"],
    ["firecracker", "microvm-kvm", "--engine microvm "],
    ["mock", "gvisor", "--engine gvisor"],
  ])("does not open a data directory as %s while it has sandboxes of %s", async (engine, inUse, flags) => {
    for (const isolation of ["microvm-kvm", "microvm-tcg", "microvm-firecracker", "gvisor"] as const) usable.add(isolation);
    await expect(picked({ engine }, inUse)).rejects.toMatchObject({
      code: "conflict",
      detail: { cause: expect.stringContaining(inUse), remediation: expect.stringContaining(flags) },
    });
    expect(gvisor.probeGvisor).not.toHaveBeenCalled();
  });
});

describe("the survey of engines", () => {
  it("tries every way but emulation, which it tries when asked for, and says which one auto takes", async () => {
    for (const isolation of ["microvm-tcg", "gvisor"] as const) usable.add(isolation);
    const found = await surveyEngines({ deep: true });
    expect(found.map(({ result, tried, isTaken }) => [result.isolation, result.usable, tried, isTaken])).toEqual([
      ["microvm-kvm", false, true, false],
      ["gvisor", true, true, true],
      ["microvm-firecracker", false, true, false],
      ["microvm-tcg", true, true, false],
    ]);
    vi.mocked(microvm.probeMicrovm).mockClear();
    const shallow = await surveyEngines({ deep: false });
    expect(shallow.map(({ tried }) => tried)).toEqual([true, true, true, false]);
    expect(vi.mocked(microvm.probeMicrovm).mock.calls.map(([{ accel }]) => accel)).toEqual(["kvm"]);
  });
});
