/** The files of copy steps: each a tar under its own digest, sent once and used by any number of builds. */

import { limits, MitosError } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { bodyOf } from "../http/body.ts";
import { check } from "../http/json.ts";
import { requestSignal } from "../http/signal.ts";
import { digest } from "../schemas.ts";

const params = z.object({ digest });

export function buildContextRoutes(app: FastifyInstance, context: ServerContext): void {
  // Fastify answers HEAD by it, which is what clients ask with: they need no more than the status.
  app.get("/v1/contexts/:digest", async (request) => {
    const { digest } = check(params, request.params);
    if (await context.engineFor(request.raw).hasContext(digest)) return { digest };
    throw new MitosError("not_found", {
      cause: `no context ${digest} is known`,
      remediation: `Send its files as a tar with PUT /v1/contexts/${digest}.`,
    });
  });

  app.put("/v1/contexts/:digest", async (request, reply) => {
    const { digest } = check(params, request.params);
    if (Number(request.headers["content-length"] ?? 0) > limits.contextBytesMax) throw tooLarge();
    let bytes = 0;
    let ok = false;
    try {
      using client = requestSignal(request, reply, context.shutdown);
      const tar = counted(bodyOf(request), (length) => {
        bytes += length;
        if (bytes > limits.contextBytesMax) throw tooLarge();
      });
      await context.engineFor(request.raw).putContext(digest, tar, client.signal);
      ok = true;
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: "", op: "put_context", detail: `digest=${digest}`, bytes, ok });
    }
    return { digest, bytes };
  });
}

async function* counted(chunks: AsyncIterable<Uint8Array>, count: (length: number) => void): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    count(chunk.length);
    yield chunk;
  }
}

function tooLarge(): MitosError {
  return new MitosError("body_too_large", {
    cause: `the files of one copy step are at most ${limits.contextBytesMax} bytes`,
    remediation: "Leave out what the build does not need (.dockerignore), or copy in several steps.",
  });
}
