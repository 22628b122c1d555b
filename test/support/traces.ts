import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import path from "node:path";

/** What a server has left on this host. All empty = nothing. */
export interface Traces {
  processes: string[];
  mounts: string[];
  cgroups: string[];
  sockets: string[];
  files: string[];
}

export const noTraces: Traces = { processes: [], mounts: [], cgroups: [], sockets: [], files: [] };

/** Whatever a server makes on the host is named after its data directory: by its path, or by a hash of it. */
export class Tracker {
  readonly #marks: readonly string[];
  readonly #dataDir: string;

  /** @param dataDir - must exist */
  constructor(dataDir: string) {
    this.#dataDir = realpathSync(dataDir);
    const hash = (text: string, length: number) => createHash("sha256").update(text).digest("hex").slice(0, length);
    this.#marks = [
      this.#dataDir,
      `mitos-${hash(this.#dataDir, 8)}`,
      hash(this.#dataDir, 8),
      hash(path.join(this.#dataDir, "snapshots"), 16),
    ];
  }

  find(): Traces {
    return {
      processes: this.#processes(),
      mounts: this.#linesOf("/proc/self/mounts"),
      sockets: this.#linesOf("/proc/net/unix"),
      cgroups: cgroupFolders("/sys/fs/cgroup").filter((folder) => this.#isMarked(path.basename(folder))),
      files: ["/dev/shm", "/run", "/tmp", process.env.XDG_RUNTIME_DIR ?? ""]
        .filter((folder) => folder && existsSync(folder))
        .flatMap((folder) => readdirSync(folder).map((name) => path.join(folder, name)))
        .filter((file) => this.#isMarked(file) && hasContent(file)),
    };
  }

  #isMarked(text: string): boolean {
    return this.#marks.some((mark) => text.includes(mark));
  }

  #processes(): string[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && name !== String(process.pid))
      .flatMap((pid) => {
        try {
          const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
          return this.#isMarked(command) ? [`${pid} ${command}`] : [];
        } catch {
          return []; // It has ended meanwhile.
        }
      });
  }

  #linesOf(file: string): string[] {
    return readFileSync(file, "utf8")
      .split("\n")
      .filter((line) => this.#isMarked(line));
  }
}

function cgroupFolders(root: string, depth = 0): string[] {
  if (depth > 4) return [];
  let entries: string[];
  try {
    entries = readdirSync(root, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => path.join(root, entry.name));
  } catch {
    return [];
  }
  return entries.flatMap((folder) => [folder, ...cgroupFolders(folder, depth + 1)]);
}

/** Empty folders of a server that has ended (its runtime directory) are no leak; anything in them is. */
function hasContent(file: string): boolean {
  try {
    return readdirSync(file, { recursive: true, withFileTypes: true }).some((entry) => !entry.isDirectory());
  } catch {
    return true;
  }
}
