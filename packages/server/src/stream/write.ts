import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";

/** Writes and, when the client reads slower than this, waits until it has caught up. @throws when the connection ends meanwhile */
export async function writeTo(response: ServerResponse | Http2ServerResponse, data: string | Uint8Array): Promise<void> {
  if ((response as ServerResponse).write(data)) return;
  const stop = new AbortController();
  try {
    await Promise.race([
      once(response, "drain", { signal: stop.signal }),
      once(response, "close", { signal: stop.signal }).then(() => {
        throw Object.assign(new Error("the client went away"), { code: "ECONNRESET" });
      }),
    ]);
  } finally {
    stop.abort();
  }
}
