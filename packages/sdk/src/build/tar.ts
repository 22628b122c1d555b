/** One thing in a tar. */
export type TarEntry = { readonly path: string } & (
  | { readonly kind: "folder" }
  | { readonly kind: "link"; readonly target: string }
  | { readonly kind: "file"; readonly isExecutable: boolean; readonly size: number; readonly content: () => AsyncIterable<Uint8Array> }
);

const block = 512;
/** What a field of eleven octal digits holds. */
const plainSizeMax = 0o77777777777;

/**
 * The same bytes for the same entries, whoever makes them, when and where: no times, no owners, and of a file's mode only whether it
 * can be executed. Names that do not fit into the old header are in a pax record before it.
 */
export function packTar(entries: readonly TarEntry[]): AsyncGenerator<Uint8Array, void, undefined> {
  return gathered(piecesOf(entries));
}

/** Small files would otherwise be sent in pieces of a few hundred bytes. */
async function* gathered(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  let waiting: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of pieces) {
    waiting.push(piece);
    bytes += piece.length;
    if (bytes < chunkBytesMin) continue;
    yield waiting.length === 1 ? piece : Buffer.concat(waiting);
    waiting = [];
    bytes = 0;
  }
  if (bytes > 0) yield Buffer.concat(waiting);
}

const chunkBytesMin = 64 * 1024;

async function* piecesOf(entries: readonly TarEntry[]): AsyncGenerator<Uint8Array, void, undefined> {
  for (const entry of entries) {
    yield headerOf(entry);
    if (entry.kind !== "file") continue;
    for await (const chunk of entry.content()) yield chunk;
    const rest = entry.size % block;
    if (rest > 0) yield new Uint8Array(block - rest);
  }
  yield new Uint8Array(2 * block);
}

const types = { file: "0", link: "2", folder: "5" } as const;

function headerOf(entry: TarEntry): Uint8Array {
  const name = entry.kind === "folder" ? `${entry.path}/` : entry.path;
  const target = entry.kind === "link" ? entry.target : "";
  const size = entry.kind === "file" ? entry.size : 0;
  const records = [
    ...(fits(name) ? [] : [record("path", name)]),
    ...(fits(target) ? [] : [record("linkpath", target)]),
    ...(size <= plainSizeMax ? [] : [record("size", String(size))]),
  ];
  const mode = entry.kind === "folder" || (entry.kind === "file" && entry.isExecutable) ? 0o755 : entry.kind === "link" ? 0o777 : 0o644;
  const header = ustar({ name: fits(name) ? name : "pax", mode, size: Math.min(size, plainSizeMax), type: types[entry.kind], target });
  if (records.length === 0) return header;
  const pax = Buffer.concat(records);
  const padding = Buffer.alloc((block - (pax.length % block)) % block);
  return Buffer.concat([ustar({ name: "pax", mode: 0o644, size: pax.length, type: "x", target: "" }), pax, padding, header]);
}

/** Into a field of a hundred bytes of ASCII. */
function fits(text: string): boolean {
  return text.length <= 100 && /^[\x20-\x7e]*$/.test(text);
}

/** `<length> <key>=<value>\n`, where the length counts itself. */
function record(key: string, value: string): Buffer {
  const rest = Buffer.from(` ${key}=${value}\n`);
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

interface Header {
  readonly name: string;
  readonly mode: number;
  readonly size: number;
  readonly type: string;
  readonly target: string;
}

/** POSIX.1-1988 ustar: octal text in fixed fields; the checksum counts itself as spaces. */
function ustar({ name, mode, size, type, target }: Header): Buffer {
  const header = Buffer.alloc(block);
  const octal = (value: number, at: number, length: number) => header.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at);
  header.write(name, 0);
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(0, 136, 12);
  header.write(" ".repeat(8), 148);
  header.write(type, 156);
  header.write(fits(target) ? target : "pax", 157);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return header;
}
