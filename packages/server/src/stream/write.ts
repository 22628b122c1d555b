import type { ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";

/** Writes and, when the client reads slower than this, waits until it has caught up. @throws when the connection ends meanwhile */
export function writeTo(response: ServerResponse | Http2ServerResponse, data: string | Uint8Array): Promise<void> {
  let fail: ((error: Error) => void) | undefined;
  const isTaken = (response as ServerResponse).write(data, (error) => {
    if (error) fail?.(error);
  });
  if (isTaken) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const settle = (error?: Error) => {
      response.off("drain", onDrain);
      response.off("close", onClose);
      if (error) reject(error);
      else resolve();
    };
    const onDrain = () => settle();
    // A connection that ends while its buffers are full says neither "drain" nor "error".
    const onClose = () => settle(Object.assign(new Error("the client went away"), { code: "ECONNRESET" }));
    response.once("drain", onDrain);
    response.once("close", onClose);
    fail = settle;
  });
}
