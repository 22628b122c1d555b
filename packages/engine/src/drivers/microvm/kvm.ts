import { execFile } from "node:child_process";
import type { Guest } from "../host/parts.ts";

/** Whether KVM is worth using here: found by timing a loop in a machine, since the device existing proves nothing. */
export interface KvmProbe {
  readonly usable: boolean;
  /** What the loop took; null when it did not run. */
  readonly micros: number | null;
  /** One line. */
  readonly detail: string;
  /** What to do about it; empty when it is usable. */
  readonly remedy: string;
}

/** Of the whole probe, which ends by itself after 2 s. */
const probeMsMax = 10_000;
const answerBytesMax = 16 * 1024;
const detailCharsMax = 1024;

const remedies: Readonly<Record<string, string>> = {
  absent:
    "Use a machine whose processor's virtualization is switched on (kvm_intel or kvm_amd loaded), or a virtual machine with nested virtualization.",
  denied: "Let the server's user open /dev/kvm: add it to the group kvm (usermod -aG kvm USER) and log in again.",
  slow: "Use a machine with hardware virtualization: emulated KVM is slower than no KVM.",
  processor: "Use a machine with an x86-64 processor.",
  failed: "See what the host's kernel says of KVM (dmesg), or use another machine.",
};

/** Some milliseconds; never throws. */
export async function probeKvm(guest: Guest): Promise<KvmProbe> {
  const { error, stdout } = await new Promise<{ error: Error | null; stdout: string }>((resolve) => {
    const options = { timeout: probeMsMax, killSignal: "SIGKILL", maxBuffer: answerBytesMax, env: {}, cwd: "/" } as const;
    execFile(guest.path, ["kvm-probe"], options, (error, stdout) => resolve({ error, stdout }));
  });
  return parseKvmProbe(error ? "" : stdout) ?? unusable("failed", `the probe did not answer: ${error?.message ?? stdout.slice(0, 100)}`);
}

/** Undefined for what is no answer of the probe's. */
export function parseKvmProbe(text: string): KvmProbe | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { usable, micros, why, detail } = value as Record<string, unknown>;
  if (typeof usable !== "boolean" || typeof detail !== "string") return undefined;
  if (!usable) return unusable(String(why), detail, typeof micros === "number" ? micros : null);
  return typeof micros === "number" ? { usable, micros, detail: detail.slice(0, detailCharsMax), remedy: "" } : undefined;
}

function unusable(why: string, detail: string, micros: number | null = null): KvmProbe {
  return { usable: false, micros, detail: detail.split("\n", 1)[0]!.slice(0, detailCharsMax), remedy: remedies[why] ?? remedies.failed! };
}
