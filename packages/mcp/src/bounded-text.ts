/** What one stream of a program may take up of a result; more is cut out of its middle. */
const streamBytesMax = 64 * 1024;

/** Keeps the beginning and the end of what a program prints, in bounded memory. */
export class BoundedText {
  readonly #partBytesMax: number;
  readonly #head: Uint8Array[] = [];
  #headBytes = 0;
  #tail: Uint8Array[] = [];
  #tailBytes = 0;
  #bytes = 0;

  constructor(bytesMax = streamBytesMax) {
    this.#partBytesMax = Math.floor(bytesMax / 2);
  }

  /** How much was printed. */
  get bytes(): number {
    return this.#bytes;
  }

  push(data: Uint8Array): void {
    this.#bytes += data.length;
    const room = this.#partBytesMax - this.#headBytes;
    const head = data.subarray(0, room);
    if (head.length > 0) this.#head.push(head);
    this.#headBytes += head.length;
    const tail = data.subarray(head.length);
    if (tail.length > 0) this.#tail.push(tail);
    this.#tailBytes += tail.length;
    // Joined only when twice as long as needed, so that a program that prints byte by byte costs no more than one that prints blocks.
    if (this.#tailBytes > 2 * this.#partBytesMax) this.#shortenTail();
  }

  /** Whether something is missing from the text. */
  get cut(): boolean {
    return this.#bytes > 2 * this.#partBytesMax;
  }

  text(): string {
    this.#shortenTail();
    const head = Buffer.concat(this.#head);
    const tail = Buffer.concat(this.#tail);
    if (!this.cut) return Buffer.concat([head, tail]).toString("utf8");
    const first = head.subarray(0, wholeCharacters(head));
    const last = tail.subarray(firstCharacter(tail));
    const missing = this.#bytes - first.length - last.length;
    return `${first.toString("utf8")}\n[… ${missing} bytes left out …]\n${last.toString("utf8")}`;
  }

  #shortenTail(): void {
    if (this.#tailBytes <= this.#partBytesMax) return;
    const all = Buffer.concat(this.#tail);
    this.#tail = [Buffer.from(all.subarray(all.length - this.#partBytesMax))];
    this.#tailBytes = this.#partBytesMax;
  }
}

/** The length of the part that does not end within a UTF-8 character. */
export function wholeCharacters(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!;
    if ((byte & 0xc0) === 0x80) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? bytes.length - back : bytes.length;
  }
  return bytes.length;
}

/** The index of the first byte that does not continue a UTF-8 character. */
function firstCharacter(bytes: Uint8Array): number {
  let at = 0;
  while (at < 3 && at < bytes.length && (bytes[at]! & 0xc0) === 0x80) at++;
  return at;
}
