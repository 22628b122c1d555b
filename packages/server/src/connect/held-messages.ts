/** Counts what is held of the body of an RPC. */

import { envelopeHeaderBytes } from "../envelope.ts";
import type { HeldBody } from "../http/held-bodies.ts";
import type { Inflated } from "./held-gzip.ts";

/** The same bytes, all of which are held: one message, which says what to do. @throws quota_exceeded */
export async function* heldWhole(body: AsyncIterable<Uint8Array>, held: HeldBody): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    held.add(chunk.byteLength);
    yield chunk;
  }
}

/**
 * The same bytes, of which the first message is held, with what it has become, since it says what to do, and of the others what is not whole
 * yet.
 *
 * @throws quota_exceeded
 */
export async function* heldMessages(body: AsyncIterable<Uint8Array>, held: HeldBody, inflated: Inflated): AsyncGenerator<Uint8Array> {
  const bytesBehindEnd = messageEnds();
  let first = 0;
  let unfinished = 0;
  for await (const chunk of body) {
    unfinished += held.add(chunk.byteLength);
    const rest = bytesBehindEnd(chunk);
    const endsFirst = first === 0 && rest !== undefined;
    if (rest !== undefined) {
      if (endsFirst) first = unfinished - rest;
      unfinished = rest;
    }
    yield chunk;
    // Whoever asks for more has done with every message that was whole.
    const becameMore = inflated.take();
    if (endsFirst) first += becameMore;
    held.keepOnly(first + unfinished);
  }
}

/** Asked with each chunk: how many of its bytes lie behind the last message that ends in it; undefined = none does. */
function messageEnds(): (chunk: Uint8Array) => number | undefined {
  const head = Buffer.alloc(envelopeHeaderBytes);
  let headBytes = 0;
  let missing = 0;
  return (chunk) => {
    let rest: number | undefined;
    for (let at = 0; at < chunk.byteLength; ) {
      if (headBytes < envelopeHeaderBytes) {
        head[headBytes++] = chunk[at++]!;
        if (headBytes < envelopeHeaderBytes) continue;
        missing = head.readUInt32BE(1);
      }
      const taken = Math.min(missing, chunk.byteLength - at);
      at += taken;
      missing -= taken;
      if (missing > 0) continue;
      headBytes = 0;
      rest = chunk.byteLength - at;
    }
    return rest;
  };
}
