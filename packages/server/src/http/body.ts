import type { FastifyRequest } from "fastify";

/** Without a byte for this long, an upload is given up. */
const uploadSilenceMs = 120_000;

/** The raw bytes of a request, of any size. */
export async function* bodyOf(request: FastifyRequest): AsyncGenerator<Uint8Array> {
  const watch = () => setTimeout(() => request.raw.destroy(new Error("the upload fell silent")), uploadSilenceMs);
  let silence = watch();
  try {
    // The answer is sent on the same connection, so an early end must not destroy the request.
    for await (const chunk of request.raw.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      // Whoever takes it slowly is not a silent client.
      clearTimeout(silence);
      yield chunk;
      silence = watch();
    }
  } finally {
    clearTimeout(silence);
  }
}
