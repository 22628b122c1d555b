import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Log } from "../actions.ts";
import type { ProbeResult } from "../driver.ts";
import { defaultRuntimeDir } from "./host/layout.ts";
import { findGuest, firstLine, MissingPart } from "./host/parts.ts";
import { findAssets } from "./microvm/assets.ts";
import { candidates } from "./pick.ts";

/** What one way to run sandboxes is worth on this machine, for `mitos doctor`. */
export interface EngineSurvey {
  readonly result: ProbeResult;
  /** Whether a sandbox was started to find out; else only its parts were looked for. */
  readonly tried: boolean;
  /** What `--engine auto` takes for a new data directory. */
  readonly isTaken: boolean;
  /** What a user writes to get it. */
  readonly flags: string;
}

/**
 * Every way to run sandboxes, best first. Each is tried in a folder of its own, so that a running server is not disturbed.
 *
 * @param deep - starts a microVM under emulation too, which takes some seconds; else only its parts are looked for
 */
export async function surveyEngines({ deep }: { readonly deep: boolean }): Promise<readonly EngineSurvey[]> {
  const found: EngineSurvey[] = [];
  for (const candidate of candidates) {
    const tried = deep || candidate.isolation !== "microvm-tcg";
    const result = tried ? await inOwnFolder(candidate.probe) : await lookForParts();
    const isTaken = candidate.byItself && result.usable && !found.some((each) => each.isTaken);
    found.push({ result, tried, isTaken, flags: candidate.flags });
  }
  return found;
}

type Candidate = (typeof candidates)[number];

async function inOwnFolder(probe: Candidate["probe"]): Promise<ProbeResult> {
  const dataDir = await mkdtemp(path.join(tmpdir(), "mitos-probe-"));
  try {
    return await probe({ dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log: silent });
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
}

async function lookForParts(): Promise<ProbeResult> {
  const isolation = "microvm-tcg";
  try {
    const { vmm, kernel } = await findAssets(await findGuest(undefined));
    const detail = `${vmm.build} and the kernel ${kernel.release} are there; no sandbox was started`;
    return { usable: true, isolation, detail, remedies: [], weaknesses: [] };
  } catch (error) {
    const remedies = error instanceof MissingPart ? [error.remedy] : [];
    return { usable: false, isolation, detail: firstLine(error), remedies, weaknesses: [] };
  }
}

const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
