import { MitosError } from "@mitos/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";

/**
 * Aborted when the client leaves before its answer is complete, when the server cuts its streams, and at the end of the block that holds
 * it, so that nothing that was opened for the request stays open.
 */
export function requestSignal(
  request: FastifyRequest,
  reply: FastifyReply,
  shutdown: AbortSignal,
): Disposable & { readonly signal: AbortSignal } {
  const controller = new AbortController();
  const onClose = () => {
    if (!reply.raw.writableFinished) controller.abort(new MitosError("canceled", { cause: "the client went away" }));
  };
  const onShutdown = () => controller.abort(shutdown.reason);
  reply.raw.once("close", onClose);
  shutdown.addEventListener("abort", onShutdown, { once: true });
  if (request.raw.socket?.destroyed) onClose();
  if (shutdown.aborted) onShutdown();
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      reply.raw.off("close", onClose);
      shutdown.removeEventListener("abort", onShutdown);
      controller.abort(new MitosError("canceled", { cause: "the request is over" }));
    },
  };
}
