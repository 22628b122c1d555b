import { readdir, readlink, stat } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { MachineRoot } from "./root.ts";

/** How the kernel marks an open file that is no longer at its place. */
const deletedMark = " (deleted)";
/** The sentry's root is an empty folder of its own, in which the machine's root is mounted at /root. */
const sentryPrefix = "/root/";
const filesMax = 65_536;

/**
 * The host's files that a machine depends on: those that its sentry holds open, which are the ones that programs have open or mapped, and lately
 * used ones. After a restore, programs go on with whatever lies at these paths then.
 *
 * A machine's root itself is not in the list: its content never changes under its name.
 *
 * @throws snapshot_incompatible when one of them is no longer at its place
 */
export async function hostFilesOf(sentryPid: number, root: MachineRoot): Promise<Set<string>> {
  const files = new Set<string>();
  const dir = `/proc/${sentryPid}/fd`;
  const names = await readdir(dir);
  if (names.length > filesMax) throw new MitosError("internal", { cause: "the machine has too many host files open to be saved" });
  const targets = await Promise.all(names.map((name) => readlink(path.join(dir, name)).catch(() => undefined)));
  for (const target of targets) {
    if (!target?.startsWith(sentryPrefix)) continue;
    const file = hostPath(target.slice(sentryPrefix.length - 1), root);
    if (file?.endsWith(deletedMark)) throw replaced(file.slice(0, -deletedMark.length));
    if (file) files.add(file);
  }
  return files;
}

/** A copy would find another file at that place, or none. */
function replaced(file: string): MitosError {
  return new MitosError("snapshot_incompatible", {
    message: "the sandbox cannot be saved any more; it runs on",
    cause: `${file} on the host was replaced or removed since a program in the sandbox opened it`,
    remediation:
      "End the programs that use that file (after an upgrade of the host, most of them), or create a new sandbox from the template.",
    context: { file },
  });
}

function hostPath(machinePath: string, root: MachineRoot): string | undefined {
  for (const { source, destination } of root.binds) {
    if (machinePath === destination) return source;
    if (machinePath.startsWith(`${destination}/`)) return source + machinePath.slice(destination.length);
  }
  return undefined;
}

/** path → what it was when the snapshot was made. */
export async function fingerprint(files: Iterable<string>): Promise<Record<string, string>> {
  const sorted = [...files].sort();
  const prints = await Promise.all(sorted.map(printOf));
  return Object.fromEntries(sorted.map((file, index) => [file, prints[index] ?? "absent"]));
}

/** @throws snapshot_incompatible naming the first file that is not what it was */
export async function requireSameFiles(hostFiles: Readonly<Record<string, string>>): Promise<void> {
  const entries = Object.entries(hostFiles);
  const prints = await Promise.all(entries.map(([file]) => printOf(file)));
  for (const [index, [file, before]] of entries.entries()) {
    if (prints[index] === before) continue;
    throw new MitosError("snapshot_incompatible", {
      cause: `${file} on the host ${prints[index] === "absent" ? "is gone" : "has changed"} since the snapshot was made, and programs in it use that file`,
      remediation: `Put the earlier ${file} back (reinstall the same package version), or create a new sandbox from the template.`,
      context: { file },
    });
  }
}

/** Folders are only asked for their presence: files come and go in them, and what a program used of them is in the list itself. */
async function printOf(file: string): Promise<string> {
  const found = await stat(file, { bigint: true }).catch(() => undefined);
  if (!found) return "absent";
  if (found.isDirectory()) return "folder";
  // Not the device: its number can be another after the host has booted again.
  return `${found.size}:${found.mtimeNs}:${found.ino}`;
}
