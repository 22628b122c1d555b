import { finished } from "node:stream";
import type { FastifyRequest } from "fastify";

/** Without a byte for this long, an upload is given up. */
const uploadSilenceMs = 120_000;
/** Of a client that is faster than whoever takes the bytes. More than a stream of Node keeps, so that both can work at the same time. */
const aheadBytesMax = 262_144;

/** The raw bytes of a request, of any size. */
export async function* bodyOf(request: FastifyRequest): AsyncGenerator<Uint8Array> {
  const body = request.raw;
  const waiting: Buffer[] = [];
  let waitingBytes = 0;
  let end: { readonly error: Error | null | undefined } | undefined;
  let wake: (() => void) | undefined;
  const onData = (chunk: Buffer) => {
    waiting.push(chunk);
    waitingBytes += chunk.length;
    if (waitingBytes >= aheadBytesMax) body.pause();
    wake?.();
  };
  const stopWatching = finished(body, { writable: false }, (error) => {
    end = { error };
    wake?.();
  });
  body.on("data", onData);
  try {
    for (;;) {
      if (waiting.length === 0 && !end) {
        // Whoever takes it slowly is not a silent client: only this wait counts.
        const silence = setTimeout(() => body.destroy(new Error("the upload fell silent")), uploadSilenceMs);
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = undefined;
        clearTimeout(silence);
      }
      const chunks = waiting.splice(0);
      if (chunks.length === 0 && end) {
        if (end.error) throw end.error;
        return;
      }
      waitingBytes = 0;
      body.resume();
      yield* chunks;
    }
  } finally {
    // The answer is sent on the same connection, so an early end must not destroy the request.
    stopWatching();
    body.off("data", onData);
    if (!end) body.pause();
  }
}
