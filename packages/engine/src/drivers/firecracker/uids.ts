import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { Layout } from "./host.ts";
import type { Jail } from "./place.ts";

/** Of jailed VMMs, one each: what gets out of one is nobody on this host, and not the user of another. */
const firstUid = 64_000;
const uidCount = 1_000;

/** What `vmm.json` in a shim's folder says of a VMM, for the servers that come after. */
export const descriptionName = "vmm.json";

/** Users for jailed VMMs. Those of machines that an earlier server has started are taken as well. */
export class Uids {
  readonly #layout: Layout;
  readonly #taken = new Set<number>();

  constructor(layout: Layout) {
    this.#layout = layout;
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
    for (const keeperId of await readdir(this.#layout.machines).catch(() => [])) {
      const text = await readFile(path.join(this.#layout.machines, keeperId, descriptionName), "utf8").catch(() => "{}");
      const { jail } = JSON.parse(text) as { jail?: Jail | null };
      if (jail) found.add(jail.uid);
    }
    return found;
  }
}
