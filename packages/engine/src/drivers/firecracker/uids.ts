import { readdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { type Jail, type JailHost, jailRoot } from "./place.ts";

/** Of jailed VMMs, one each: what gets out of one is nobody on this host, and not the user of another. */
const firstUid = 64_000;
const uidCount = 1_000;

/** What `vmm.json` in a shim's folder says of a VMM, for the servers that come after. */
export const descriptionName = "vmm.json";

/** One that exists is whole: others look for users in it while this one is being written. Before anything of the VMM is started. */
export async function writeDescription(dir: string, description: object): Promise<void> {
  const file = path.join(dir, descriptionName);
  await writeFile(`${file}.part`, JSON.stringify(description));
  await rename(`${file}.part`, file);
}

/** Users for jailed VMMs. Those of machines that an earlier server has started are taken as well. */
export class Uids {
  readonly #host: JailHost;
  readonly #taken = new Set<number>();

  constructor(host: JailHost) {
    this.#host = host;
  }

  /** @throws unavailable when all are taken */
  async take(): Promise<Jail & Disposable> {
    const others = await this.#ofMachines();
    // Nothing waits between the look and the taking.
    for (let uid = firstUid; uid < firstUid + uidCount; uid += 1) {
      if (this.#taken.has(uid) || others.has(uid)) continue;
      this.#taken.add(uid);
      return { uid, gid: uid, [Symbol.dispose]: () => this.#taken.delete(uid) };
    }
    throw new MitosError("unavailable", { cause: `all ${uidCount} users for virtual machines are taken` });
  }

  async #ofMachines(): Promise<Set<number>> {
    const found = new Set<number>();
    for (const keeperId of await readdir(this.#host.layout.machines).catch(() => [])) {
      const uid = (await this.#described(keeperId)) ?? (await this.#ownerOfJail(keeperId));
      if (uid !== undefined) found.add(uid);
    }
    return found;
  }

  /** Undefined also for a description that is missing or damaged: that of one machine keeps no other from being started. */
  async #described(keeperId: string): Promise<number | undefined> {
    try {
      const text = await readFile(path.join(this.#host.layout.machines, keeperId, descriptionName), "utf8");
      return (JSON.parse(text) as { jail: Jail | null }).jail?.uid;
    } catch {
      return undefined;
    }
  }

  /** The jailer gives the jail to its user before it becomes that user. Where there is no jail nothing runs as one. */
  async #ownerOfJail(keeperId: string): Promise<number | undefined> {
    return (await stat(jailRoot(this.#host, keeperId)).catch(() => undefined))?.uid;
  }
}
