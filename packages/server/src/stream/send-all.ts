import type { ServerResponse } from "node:http";
import { finished } from "node:stream/promises";

/** Of a client that reads slower than the source gives. More than a stream of Node keeps, so that both can work at the same time. */
const aheadBytesMax = 262_144;

/** The rest of a response, and its end. Resolves when all has been handed over; on any failure the connection is cut. */
export async function sendAll(source: AsyncIterable<Uint8Array>, response: ServerResponse, signal: AbortSignal): Promise<void> {
  const done = finished(response, { readable: false, signal });
  done.catch(() => {}); // waited for at the end, or another failure came first
  try {
    for await (const piece of source) {
      response.write(piece);
      if (response.writableLength >= aheadBytesMax) await drained(response, signal);
      signal.throwIfAborted();
    }
    response.end();
    await done;
  } catch (error) {
    response.destroy();
    throw error;
  }
}

/** Resolves as well when nothing will be read any more: a connection that ends while its buffers are full says neither "drain" nor "error". */
function drained(response: ServerResponse, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const settle = () => {
      response.off("drain", settle).off("close", settle);
      signal.removeEventListener("abort", settle);
      resolve();
    };
    response.once("drain", settle).once("close", settle);
    signal.addEventListener("abort", settle);
    if (response.destroyed || signal.aborted) settle();
  });
}
