/** Where the agent lies in every machine. */
export const agentPath = "/opt/mitos/bin/mitos-guest";

/** Ours in every root, whatever host or image have there. */
export const ownEtcFiles = [
  { name: "etc/hostname", content: "sandbox\n" },
  { name: "etc/hosts", content: "127.0.0.1 localhost\n::1 localhost\n" },
  // Written anew for each machine when it is adopted.
  { name: "etc/machine-id", content: `${"0".repeat(32)}\n` },
  // The agent answers there: names that the sandbox may reach, and a refusal at once for all others.
  { name: "etc/resolv.conf", content: "nameserver 127.0.0.1\n" },
] as const;

/** Of ours in a root. Names are relative, short and ours alone; a folder comes before what is in it. */
export type OwnEntry =
  | { readonly kind: "folder"; readonly name: string; readonly mode: number }
  | { readonly kind: "file"; readonly name: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly kind: "link"; readonly name: string; readonly target: string };

/** What every root that is not the host's has of ours, below the files of its image and above them. */
export function ownEntries(agent: Uint8Array): { readonly lower: readonly OwnEntry[]; readonly upper: readonly OwnEntry[] } {
  return {
    // Below all others: folders that programs expect. An image that has them keeps its own.
    lower: [
      { kind: "folder", name: "root", mode: 0o700 },
      folder("var"),
      { kind: "folder", name: "var/tmp", mode: 0o1777 },
      folder("workspace"),
    ],
    // Above all others: the agent, what it writes anew for each machine, and where file systems are mounted.
    upper: [
      folder("dev"),
      // An image may have a link there, which the names below must not follow.
      folder("etc"),
      folder("opt"),
      folder("proc"),
      folder("run"),
      folder("sys"),
      { kind: "folder", name: "tmp", mode: 0o1777 },
      folder("opt/mitos"),
      folder("opt/mitos/bin"),
      { kind: "file", name: agentPath.slice(1), mode: 0o755, content: agent },
      ...ownEtcFiles.map(({ name, content }) => ({ kind: "file", name, mode: 0o644, content: Buffer.from(content) }) as const),
      { kind: "link", name: "etc/mtab", target: "/proc/self/mounts" },
    ],
  };
}

function folder(name: string): OwnEntry {
  return { kind: "folder", name, mode: 0o755 };
}
