import type { ServerSandbox } from "../types.ts";

/** A sandbox that has ended has none: it is not found. */
export type SandboxState = "running" | "paused";

/** A sandbox as the server knows it. */
export interface SandboxInfo {
  sandboxId: string;
  /** The template's name. */
  templateId: string;
  name?: string;
  metadata: Record<string, string>;
  startedAt: Date;
  /** When it ends by itself; the latest date there is for a sandbox without a time-out, which only other clients make. */
  endAt: Date;
  state: SandboxState;
  cpuCount: number;
  memoryMB: number;
  /** Always `0.0.0`: there is no envd here. */
  envdVersion: string;
  lifecycle?: { onTimeout: "pause" | "kill"; autoResume: boolean };
}

const latestDateMs = 8_640_000_000_000_000;

export function toSandboxInfo(row: ServerSandbox): SandboxInfo {
  const { deadlineUnix } = row;
  return {
    sandboxId: row.id,
    templateId: row.templateId,
    name: row.templateId,
    metadata: { ...row.metadata },
    startedAt: new Date(row.createdAt),
    endAt: new Date(typeof deadlineUnix === "number" ? deadlineUnix * 1000 : latestDateMs),
    state: stateOf(row) ?? "running",
    cpuCount: row.resources?.vcpuCount ?? 0,
    memoryMB: row.resources?.memSizeMiB ?? 0,
    envdVersion: "0.0.0",
    lifecycle: { onTimeout: "kill", autoResume: false },
  };
}

/** On its way to another state counts as in that state. @returns undefined for what has failed or ended */
export function stateOf({ state = "running" }: ServerSandbox): SandboxState | undefined {
  if (state === "paused" || state === "pausing") return "paused";
  return state === "failed" || state === "ended" ? undefined : "running";
}
