import { closeSync, constants, existsSync, openSync, realpathSync, statSync } from "node:fs";
import path from "node:path";
import { Refused } from "./api.ts";

/** What a jailed VMM is: its root folder, and whom it runs as. */
export interface Jailed {
  readonly root: string;
  readonly uid: number;
}

/** Opens what a VMM names, as one of its user would, in its jail if it is in one. */
export class Files {
  readonly #jailed: Jailed | undefined;

  constructor(jailed: Jailed | undefined) {
    this.#jailed = jailed;
  }

  /** @throws Refused */
  open(name: string, access: "read" | "read_write"): number {
    const file = this.resolve(name);
    this.#permit(name, file, access);
    try {
      return openSync(file, access === "read" ? constants.O_RDONLY : constants.O_RDWR);
    } catch (error) {
      throw new Refused(`Unable to open ${name}: ${(error as Error).message}`);
    }
  }

  /** Creates or empties it, as Firecracker does with the files of a snapshot. @throws Refused */
  create(name: string): number {
    const file = this.resolve(name);
    try {
      return openSync(file, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
    } catch (error) {
      throw new Refused(`Cannot create ${name}: ${(error as Error).message}`);
    }
  }

  /** Where the host finds it. */
  resolve(name: string): string {
    if (!this.#jailed) return path.resolve(name);
    return path.join(this.#jailed.root, path.resolve("/", name));
  }

  /** Only its user's rights count in a jail, and no link leads out of it. */
  #permit(name: string, file: string, access: "read" | "read_write"): void {
    if (!this.#jailed) return;
    const { root, uid } = this.#jailed;
    if (!existsSync(file) || !realpathSync(file).startsWith(`${realpathSync(root)}/`))
      throw new Refused(`Unable to open ${name}: No such file`);
    const { uid: owner, mode } = statSync(file);
    const bits = owner === uid ? mode >> 6 : mode;
    const wanted = access === "read" ? 4 : 6;
    if ((bits & wanted) !== wanted) throw new Refused(`Unable to open ${name}: Permission denied`);
  }

  close(descriptor: number | undefined): void {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}
