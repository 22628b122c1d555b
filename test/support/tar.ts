/** One entry of a tar as it is to stand there: nothing is checked, so that it can also be what a careful writer would refuse. */
export interface TarEntry {
  readonly name: string;
  /** Default: file. A single character is taken as it is. */
  readonly type?: keyof typeof typeFlags | (string & {});
  readonly content?: string | Uint8Array;
  /** Of links. */
  readonly target?: string;
  /** Default: 0o644, of folders 0o755. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Seconds. Default: 2024-01-01. */
  readonly mtime?: number;
  readonly device?: readonly [major: number, minor: number];
  /** Records for the pax header before it, such as `SCHILY.xattr.user.note`. */
  readonly pax?: Readonly<Record<string, string | Uint8Array>>;
  /** What the header says of the size, where that is not true. */
  readonly size?: number;
}

const typeFlags = { file: "0", hardlink: "1", symlink: "2", char: "3", block: "4", dir: "5", fifo: "6" } as const;
const newYear2024 = 1_704_067_200;

/** A tar with these files, names unchecked. */
export function tarOf(files: Readonly<Record<string, string>>): Buffer {
  return tarOfEntries(Object.entries(files).map(([name, content]) => ({ name, content, mtime: 0 })));
}

export function tarOfEntries(entries: Iterable<TarEntry>): Buffer {
  const blocks: Uint8Array[] = [];
  for (const entry of entries) blocks.push(...entryBlocks(entry));
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}

function entryBlocks(entry: TarEntry): Uint8Array[] {
  const data = Buffer.from(entry.content ?? "");
  const records = { ...longNames(entry), ...entry.pax };
  const pax = Buffer.concat(Object.entries(records).map(([key, value]) => paxRecord(key, Buffer.from(value))));
  const before = pax.length > 0 ? [header({ name: "pax", type: "x" }, pax.length), ...padded(pax)] : [];
  return [...before, header(entry, entry.size ?? data.length), ...padded(data)];
}

function padded(data: Buffer): Buffer[] {
  return [data, Buffer.alloc((512 - (data.length % 512)) % 512)];
}

/** What does not fit into the header's fields. */
function longNames({ name, target = "" }: TarEntry): Record<string, string> {
  return {
    ...(Buffer.byteLength(name) > 100 ? { path: name } : {}),
    ...(Buffer.byteLength(target) > 100 ? { linkpath: target } : {}),
  };
}

/** `<length> <key>=<value>\n`, whose length counts itself. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from("\n")]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

/** POSIX.1-1988 ustar: octal text in fixed fields; the checksum counts itself as spaces. */
function header(entry: TarEntry, size: number): Buffer {
  const { name, type = "file", target = "", uid = 0, gid = 0, mtime = newYear2024, device = [0, 0] } = entry;
  const block = Buffer.alloc(512);
  const octal = (value: number, at: number, length: number) => block.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at, length);
  block.write(name, 0, 100);
  octal(entry.mode ?? (type === "dir" ? 0o755 : 0o644), 100, 8);
  octal(uid, 108, 8);
  octal(gid, 116, 8);
  octal(size, 124, 12);
  octal(mtime, 136, 12);
  block.write(" ".repeat(8), 148);
  block.write(type in typeFlags ? typeFlags[type as keyof typeof typeFlags] : type, 156, 1);
  block.write(target, 157, 100);
  block.write("ustar\x0000", 257);
  octal(device[0], 329, 8);
  octal(device[1], 337, 8);
  octal(
    block.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  return block;
}
