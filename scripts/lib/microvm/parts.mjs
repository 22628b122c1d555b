// Where the parts of virtual machines lie: `.cache/microvm`, one file or folder a part, named for its content, and beside it `<part>.json`
// which says which one is in use. Both appear whole or not at all; older ones stay, since a paused sandbox may need them.
import { createHash } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, readSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { cache, removeLeftovers } from "../run.mjs";

export const partsFolder = path.join(cache, "microvm");

/**
 * Makes a part, unless what is there was made from the same.
 *
 * @param part - its name: `vmm`, `kernel`, `disk` or `root`
 * @param from - what decides its content, as something that JSON can hold
 * @param make - given an empty folder of its own, makes the part in it; returns `{ made, name, record }`: the path of what it has made, the
 *   name that this gets in `.cache/microvm`, and what readers need to know of it beside its name
 * @returns a note about it
 */
export async function ensurePart(part, from, make) {
  const made = readPart(part);
  if (made && made.from === JSON.stringify(from)) return `${made.name}, up to date`;
  return inWorkFolder(async (work) => {
    const { made, name, record } = await make(work);
    becomePart(made, path.join(partsFolder, name));
    writeWhole(
      path.join(partsFolder, `${part}.json`),
      work,
      `${JSON.stringify({ from: JSON.stringify(from), name, ...record }, null, 2)}\n`,
    );
    return name;
  });
}

/** What is known of a part that is there, or undefined. */
export function readPart(part) {
  let record;
  try {
    record = JSON.parse(readFileSync(path.join(partsFolder, `${part}.json`), "utf8"));
  } catch {
    return undefined;
  }
  return existsSync(path.join(partsFolder, record.name)) ? record : undefined;
}

/** Hexadecimal; of a file of any size. */
export function hashOfFile(file) {
  const hash = createHash("sha256");
  const piece = Buffer.alloc(1 << 20);
  const opened = openSync(file, "r");
  try {
    for (let bytes = readSync(opened, piece); bytes > 0; bytes = readSync(opened, piece)) hash.update(piece.subarray(0, bytes));
  } finally {
    closeSync(opened);
  }
  return hash.digest("hex");
}

/** Of something that JSON can hold. */
export function hashOf(value) {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}

/** Gone afterwards, whatever happens; those of set-ups that were killed go now. */
async function inWorkFolder(use) {
  mkdirSync(partsFolder, { recursive: true });
  removeLeftovers(partsFolder, "partial-");
  const work = path.join(partsFolder, `partial-${process.pid}`);
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work);
  try {
    return await use(work);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Names stand for contents: when the place is taken, what is there is as good. */
function becomePart(made, place) {
  if (existsSync(place)) return;
  try {
    renameSync(made, place);
  } catch (error) {
    if (!existsSync(place)) throw error; // another set-up was faster
  }
}

function writeWhole(file, work, text) {
  const partial = path.join(work, path.basename(file));
  writeFileSync(partial, text);
  const opened = openSync(partial, "r");
  fsyncSync(opened);
  closeSync(opened);
  renameSync(partial, file);
}
