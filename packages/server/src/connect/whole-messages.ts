import { limits } from "@mitos/protocol";
import { envelopeHeaderBytes } from "../envelope.ts";

/**
 * The same bytes, in pieces that end where a message ends. However small the pieces are in which it comes, a message is put together once;
 * whoever reads it next would else look at all of them again with each. What announces more than a message may have passes at once, for its
 * reader to refuse.
 */
export async function* wholeMessages(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let pieces: Uint8Array[] = [];
  let bytes = 0;
  /** With fewer there is nothing new to see. */
  let wanted = envelopeHeaderBytes;
  for await (const piece of body) {
    pieces.push(piece);
    bytes += piece.byteLength;
    if (bytes < wanted) continue;
    const joined = pieces.length === 1 ? Buffer.from(piece.buffer, piece.byteOffset, bytes) : Buffer.concat(pieces, bytes);
    const end = endOfMessages(joined);
    const rest = joined.subarray(end);
    pieces = rest.byteLength > 0 ? [rest] : [];
    bytes = rest.byteLength;
    wanted = messageBytes(rest) ?? envelopeHeaderBytes;
    if (end > 0) yield joined.subarray(0, end);
  }
  if (bytes > 0) yield Buffer.concat(pieces, bytes);
}

/** Where the last message ends that is whole. */
function endOfMessages(bytes: Buffer): number {
  for (let at = 0; ; ) {
    const length = messageBytes(bytes.subarray(at));
    if (length === undefined) return at;
    if (length - envelopeHeaderBytes > limits.messageBytesMax) return bytes.byteLength;
    if (at + length > bytes.byteLength) return at;
    at += length;
  }
}

/** With its header; undefined when that is not whole yet. */
function messageBytes(bytes: Buffer): number | undefined {
  return bytes.byteLength < envelopeHeaderBytes ? undefined : envelopeHeaderBytes + bytes.readUInt32BE(1);
}
