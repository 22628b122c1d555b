import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { access, readFile, realpath, stat } from "node:fs/promises";
import path from "node:path";

/** The checkout (or the installed tree) that this file lies in. */
export const repositoryRoot = path.resolve(import.meta.dirname, "../../../../..");

/** A part that a driver needs and that is missing or does not fit: one line why, and what to do. */
export class MissingPart extends Error {
  override readonly name = "MissingPart";
  readonly remedy: string;

  constructor(message: string, remedy: string) {
    super(message);
    this.remedy = remedy;
  }
}

const buildGuest = "Run `npm run setup`, which builds it, or set MITOS_GUEST to the path of mitos-guest.";

export interface Guest {
  readonly path: string;
  readonly hash: string;
}

/** @throws MissingPart */
export async function findGuest(explicit: string | undefined): Promise<Guest> {
  const asked = explicit ?? process.env.MITOS_GUEST;
  const triple = `${process.arch === "arm64" ? "aarch64" : "x86_64"}-unknown-linux-gnu`;
  const found = await firstExecutable(asked ? [asked] : [path.join(repositoryRoot, "guest/target", triple, "release/mitos-guest")]);
  if (!found) throw new MissingPart(asked ? `${asked} cannot be run` : "mitos-guest has not been built", buildGuest);
  const file = await realpath(found);
  return {
    path: file,
    hash: createHash("sha256")
      .update(await readFile(file))
      .digest("hex"),
  };
}

/** Where a program of this name may lie. */
export function onPath(name: string): string[] {
  return (process.env.PATH ?? "")
    .split(":")
    .filter((dir) => path.isAbsolute(dir))
    .map((dir) => path.join(dir, name));
}

export async function firstExecutable(candidates: readonly string[]): Promise<string | undefined> {
  for (const candidate of candidates) {
    try {
      await access(candidate, constants.X_OK);
      if ((await stat(candidate)).isFile()) return candidate;
    } catch {
      // Not there or not ours to run: the next one.
    }
  }
  return undefined;
}

export function firstLine(reason: unknown): string {
  return String(reason instanceof Error ? reason.message : reason).split("\n", 1)[0] ?? "";
}
