import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import type { Snapshot, SnapshotRequirements } from "../../driver.ts";

/** What holds for every machine of this server. */
export type Facts = Omit<SnapshotRequirements, "hostFiles">;

/** @throws snapshot_incompatible with what is not as it was */
export function requireSameFacts({ requirements }: Snapshot, facts: Facts, engine: "runsc" | "QEMU" | "Firecracker"): void {
  const names: Record<keyof Facts, string> = {
    driver: "engine",
    engineBuild: `build of ${engine}`,
    protocolVersion: "version of the link protocol",
    agentHash: "guest agent",
    cpu: "processor",
  };
  for (const key of Object.keys(names) as (keyof Facts)[]) {
    if (requirements[key] === facts[key]) continue;
    throw incompatible(`it was made with another ${names[key]}: ${show(requirements[key])}, and here is ${show(facts[key])}`);
  }
}

export function incompatible(cause: string, reason?: unknown): MitosError {
  return new MitosError("snapshot_incompatible", { cause, reason });
}

function show(value: string | number): string {
  return String(value).slice(0, 40);
}

/** Model and abilities of the processor: programs have chosen their code by them. */
export async function readCpu(): Promise<string> {
  const text = await readFile("/proc/cpuinfo", "utf8");
  const field = (name: string) => new RegExp(`^${name}\\s*:\\s*(.*)$`, "m").exec(text)?.[1] ?? "";
  const flags = (field("flags") || field("Features")).split(/\s+/).sort().join(" ");
  const model = field("model name") || `${field("CPU implementer")} ${field("CPU part")}`;
  return `${process.arch} ${model} ${createHash("sha256").update(flags).digest("hex").slice(0, 16)}`;
}
