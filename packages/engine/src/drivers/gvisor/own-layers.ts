import { type OwnEntry, ownEntries } from "../host/own-files.ts";

/**
 * What every root of layers has of ours, as two layers (tars) of their own, so that the program that unpacks and merges layers is the only one that
 * writes into a root, whatever an image has put at these places.
 *
 * @param agent - the program
 */
export function ownLayers(agent: Uint8Array): { readonly lower: Uint8Array; readonly upper: Uint8Array } {
  const { lower, upper } = ownEntries(agent);
  return { lower: tarOf(lower), upper: tarOf(upper) };
}

function tarOf(entries: readonly OwnEntry[]): Uint8Array {
  return Buffer.concat([...entries.flatMap(tarEntry), Buffer.alloc(2 * blockBytes)]);
}

const blockBytes = 512;

/** A ustar header and the content, padded to whole blocks. */
function tarEntry(entry: OwnEntry): Uint8Array[] {
  const header = Buffer.alloc(blockBytes);
  const content = entry.kind === "file" ? entry.content : Buffer.alloc(0);
  const octal = (value: number, at: number, bytes: number) => header.write(value.toString(8).padStart(bytes - 1, "0"), at, "latin1");
  header.write(entry.kind === "folder" ? `${entry.name}/` : entry.name, 0, 100, "latin1");
  octal(entry.kind === "link" ? 0o777 : entry.mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(content.byteLength, 124, 12);
  octal(0, 136, 12);
  header.write({ folder: "5", file: "0", link: "2" }[entry.kind], 156, "latin1");
  if (entry.kind === "link") header.write(entry.target, 157, 100, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return [header, content, Buffer.alloc((blockBytes - (content.byteLength % blockBytes)) % blockBytes)];
}
