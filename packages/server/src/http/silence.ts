/** Request bodies that stop coming: without an end to the wait, each would hold its call for as long as its client likes. */

import { MitosError } from "@mitos/protocol";
import { envelopeHeaderBytes } from "../envelope.ts";
import type { AnyRequest } from "./guard.ts";

/**
 * The same bytes. Only the wait for the next ones counts, not the time that whoever reads takes over the last.
 *
 * @param isCalm - asked before each wait with the bytes so far: whether the client may be silent from now on. Default: never.
 * @throws invalid_input when the client is silent for too long
 */
export async function* unlessSilent(
  body: AsyncIterable<Uint8Array>,
  silenceMs: number,
  isCalm: (chunk: Uint8Array) => boolean = () => false,
): AsyncGenerator<Uint8Array> {
  const chunks = body[Symbol.asyncIterator]();
  let calm = false;
  try {
    for (;;) {
      const next = chunks.next();
      const { done, value } = await (calm ? next : within(next, silenceMs));
      if (done) return;
      calm ||= isCalm(value);
      yield value;
    }
  } finally {
    // Not awaited: a source that is waiting for its next item may answer only after that.
    void chunks.return?.().then(undefined, () => {});
  }
}

/**
 * Reads a body to its end, piece by piece.
 *
 * @throws invalid_input when the client is silent for too long, canceled when it goes away, and what `take` throws
 */
export function readToEnd(body: AnyRequest, silenceMs: number, take: (piece: Buffer) => void): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const stop = () => {
    clearTimeout(timer);
    body.off("data", onData).off("end", onEnd).off("close", onClose);
  };
  const fail = (error: unknown) => {
    stop();
    reject(error);
  };
  const onData = (piece: Buffer) => {
    timer.refresh();
    try {
      take(piece);
    } catch (error) {
      fail(error);
    }
  };
  const onEnd = () => {
    stop();
    resolve();
  };
  const onClose = () => fail(new MitosError("canceled", { cause: "the client went away in the middle of its request" }));
  const timer = setTimeout(() => fail(silent(silenceMs)), silenceMs);
  body.on("data", onData).on("end", onEnd).on("close", onClose);
  return promise;
}

/** For `isCalm`: once the first message of a stream is whole, the client speaks when it has something to say. */
export function firstMessageIsWhole(): (chunk: Uint8Array) => boolean {
  const head = Buffer.alloc(envelopeHeaderBytes);
  let received = 0;
  return (chunk) => {
    if (received < envelopeHeaderBytes) head.set(chunk.subarray(0, envelopeHeaderBytes - received), received);
    received += chunk.byteLength;
    return received >= envelopeHeaderBytes && received - envelopeHeaderBytes >= head.readUInt32BE(1);
  };
}

function silent(ms: number): MitosError {
  return new MitosError("invalid_input", { cause: `no byte of the request's body came for ${ms / 1000} s` });
}

async function within<T>(next: Promise<T>, ms: number): Promise<T> {
  const { promise: silence, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    reject(silent(ms));
  }, ms);
  next.catch(() => {}); // may fail after the race is over
  try {
    return await Promise.race([next, silence]);
  } finally {
    clearTimeout(timer);
  }
}
