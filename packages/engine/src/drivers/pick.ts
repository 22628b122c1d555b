import { MitosError } from "@mitos/protocol";
import type { Accel, EngineChoice, EngineOptions, Log } from "../actions.ts";
import type { Driver, Isolation, ProbeResult } from "../driver.ts";
import { createFirecrackerDriver, probeFirecracker } from "./firecracker/index.ts";
import { createGvisorDriver, probeGvisor } from "./gvisor/index.ts";
import { defaultRuntimeDir } from "./host/layout.ts";
import { createMicrovmDriver, probeMicrovm } from "./microvm/index.ts";
import { openMockDriver } from "./mock/driver.ts";

/** Where a driver's machines are, and who is told. */
export interface Place {
  readonly dataDir: string;
  readonly runtimeDir: string;
  readonly log: Log;
}

/** One way to run sandboxes, which is there or is not. */
export interface Candidate {
  readonly engine: "gvisor" | "microvm" | "firecracker";
  readonly isolation: Isolation;
  /** What a user writes to get it. */
  readonly flags: string;
  /** Whether `auto` takes it where it is usable: emulation is only taken by name, or when sandboxes run on it. */
  readonly byItself: boolean;
  probe(place: Place): Promise<ProbeResult>;
  open(place: Place): Promise<Driver>;
}

const gvisor: Candidate = {
  engine: "gvisor",
  isolation: "gvisor",
  flags: "--engine gvisor",
  byItself: true,
  probe: probeGvisor,
  open: createGvisorDriver,
};

function microvm(accel: Accel): Candidate {
  return {
    engine: "microvm",
    isolation: `microvm-${accel}`,
    flags: accel === "kvm" ? "--engine microvm" : "--engine microvm --accel tcg",
    byItself: accel === "kvm",
    probe: (place) => probeMicrovm({ ...place, accel }),
    open: (place) => createMicrovmDriver({ ...place, accel }),
  };
}

/** Only by name, as long as it has not been tried on a machine with KVM (docs/firecracker.md). */
const firecracker: Candidate = {
  engine: "firecracker",
  isolation: "microvm-firecracker",
  flags: "--engine firecracker",
  byItself: false,
  probe: probeFirecracker,
  open: createFirecrackerDriver,
};

/** Best first. */
export const candidates: readonly Candidate[] = [microvm("kvm"), gvisor, firecracker, microvm("tcg")];

/**
 * The driver that was asked for; `auto` takes the best one that works here, or the one that living sandboxes of the data directory run on. The
 * mock is only ever taken by name.
 *
 * @param inUse - of the sandboxes that are not ended: another driver would lose them
 * @throws invalid_input for an accelerator of what has none; conflict when living sandboxes need another driver; not_supported with why no
 *   sandbox can run here, and what to install
 */
export async function pickDriver(options: EngineOptions, inUse: ReadonlySet<Isolation> = new Set()): Promise<Driver> {
  const { engine, accel, dataDir, log } = options;
  if (accel !== undefined && engine !== "microvm") {
    throw new MitosError("invalid_input", {
      cause: `the accelerator ${accel} is one of microVMs, and the engine is ${engine}`,
      remediation: "Say --engine microvm with it, or leave --accel out.",
    });
  }
  const used = candidatesInUse(inUse);
  refuseOthers(engine, used);
  if (engine === "mock") return openMockDriver();
  const place = { dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log };
  const wanted = wantedBy(engine, accel, used);
  const refusals: Refusal[] = [];
  for (const candidate of wanted) {
    const result = await candidate.probe(place);
    if (result.usable) {
      tell(log, result, refusals);
      return candidate.open(place);
    }
    refusals.push({ candidate, result });
  }
  throw nothingUsable(wanted, refusals);
}

interface Refusal {
  readonly candidate: Candidate;
  readonly result: ProbeResult;
}

/** Best first. */
function wantedBy(engine: EngineChoice, accel: Accel | undefined, used: readonly Candidate[]): readonly Candidate[] {
  if (engine === "gvisor") return [gvisor];
  if (engine === "firecracker") return [firecracker];
  if (engine === "microvm") return [microvm(accel ?? "kvm")];
  return used.length > 0 ? used.slice(0, 1) : candidates.filter(({ byItself }) => byItself);
}

function candidatesInUse(inUse: ReadonlySet<Isolation>): Candidate[] {
  return candidates.filter(({ isolation }) => inUse.has(isolation));
}

/** Machines of one driver are unknown to another, which would report them lost and leave them running. */
function refuseOthers(engine: EngineChoice, used: readonly Candidate[]): void {
  const other = used.find((each) => engine !== "auto" && each.engine !== engine);
  if (!other) return;
  throw new MitosError("conflict", {
    cause: `the data directory has sandboxes that run on ${other.isolation}, and the engine is ${engine}`,
    remediation: `Serve it with ${other.flags} (or --engine auto) and end them, or choose another --data-dir.`,
  });
}

function tell(log: Log, { isolation, detail, weaknesses }: ProbeResult, refusals: readonly Refusal[]): void {
  const instead = refusals.map(({ result }) => `${result.isolation}: ${result.detail}`);
  log.info({ isolation, detail, ...(instead.length > 0 ? { notTaken: instead } : {}) }, "this is how sandboxes run");
  for (const weakness of weaknesses) log.warn({ isolation, weakness }, "this machine isolates less than it could");
}

function nothingUsable(wanted: readonly Candidate[], refusals: readonly Refusal[]): MitosError {
  const emulated =
    wanted.length === 1 && wanted[0]!.isolation === "microvm-kvm" ? ["To emulate the processor, which is slower, say --accel tcg."] : [];
  const name = wanted.length === 1 ? `${wanted[0]!.isolation} cannot run sandboxes` : "no engine can run sandboxes";
  return new MitosError("not_supported", {
    message: `${name} on this machine`,
    cause: refusals.map(({ result }) => `${result.isolation}: ${result.detail}`).join("; "),
    remediation: [...refusals.flatMap(({ result }) => result.remedies), ...emulated, "`mitos doctor` says more."].join(" "),
  });
}
