/** One entry of an archive. Names are relative; a folder comes before what is in it. Everything belongs to root. */
export type CpioEntry =
  | { readonly kind: "folder"; readonly name: string; readonly mode: number }
  | { readonly kind: "file"; readonly name: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly kind: "link"; readonly name: string; readonly target: string }
  | { readonly kind: "character device"; readonly name: string; readonly mode: number; readonly major: number; readonly minor: number };

const typeBits = { folder: 0o040000, file: 0o100000, link: 0o120000, "character device": 0o020000 } as const;

/** An archive in the format that the kernel unpacks as its first root file system (`newc`), without compression. The same entries give the same bytes. */
export function cpioOf(entries: readonly CpioEntry[]): Uint8Array {
  const pieces: Uint8Array[] = [];
  entries.forEach((entry, index) => {
    const device = entry.kind === "character device" ? entry : undefined;
    pieces.push(header(entry.name, { inode: index + 1, mode: typeBits[entry.kind] | modeOf(entry), content: contentOf(entry), device }));
    pieces.push(padded(contentOf(entry)));
  });
  pieces.push(header("TRAILER!!!", { inode: 0, mode: 0, content: nothing }));
  return Buffer.concat(pieces);
}

const nothing = new Uint8Array();

function modeOf(entry: CpioEntry): number {
  return entry.kind === "link" ? 0o777 : entry.mode;
}

function contentOf(entry: CpioEntry): Uint8Array {
  if (entry.kind === "file") return entry.content;
  return entry.kind === "link" ? Buffer.from(entry.target) : nothing;
}

interface Fields {
  readonly inode: number;
  readonly mode: number;
  readonly content: Uint8Array;
  readonly device?: { readonly major: number; readonly minor: number } | undefined;
}

/** Thirteen numbers of eight hexadecimal digits each, and the name. */
function header(name: string, { inode, mode, content, device }: Fields): Uint8Array {
  const ended = Buffer.from(`${name}\0`);
  const numbers = {
    inode,
    mode,
    uid: 0,
    gid: 0,
    links: 1,
    mtime: 0,
    bytes: content.byteLength,
    majorOfHolder: 0,
    minorOfHolder: 0,
    major: device?.major ?? 0,
    minor: device?.minor ?? 0,
    nameBytes: ended.byteLength,
    check: 0,
  };
  const digits = Object.values(numbers).map((value) => value.toString(16).padStart(8, "0"));
  return padded(Buffer.concat([Buffer.from(`070701${digits.join("")}`), ended]));
}

/** Headers and contents begin at multiples of four. */
function padded(bytes: Uint8Array): Uint8Array {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.byteLength % 4)) % 4)]);
}
