/**
 * The runtime routes of the 0.1.0 client: JSON bodies that name the sandbox, and answers of that time. Each is read as the RPC that took its
 * place, so that both generations get the same behaviour, and only the words differ.
 */

import { MitosError, type SandboxId } from "@mitos/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import { type Call, contextHeader, parseCodeContext } from "../connect/call.ts";
import type { ServerContext } from "../context.ts";
import { isOurFault, toMitosError } from "../errors.ts";
import { requestSignal } from "../http/signal.ts";
import { clientSignal } from "../stream/follow.ts";
import { JsonLines } from "../stream/lines.ts";

/** Runs `handle` until the client leaves, and writes the audit log's line for it. */
export async function asCall<T>(
  context: ServerContext,
  { request, reply, sandbox, op }: { request: FastifyRequest; reply: FastifyReply; sandbox: SandboxId; op: string },
  handle: (call: Call) => Promise<T>,
): Promise<T> {
  using client = requestSignal(request, reply, context.shutdown);
  const call: Call = {
    context,
    sandbox,
    runtime: () => context.engineFor(request.raw).runtime(sandbox),
    signals: { client: clientSignal(client.signal, context.shutdown), shutdown: context.shutdown },
    codeContext: () => parseCodeContext(request.headers[contextHeader.toLowerCase()]),
  };
  let ok = false;
  try {
    const answer = await handle(call);
    ok = true;
    return answer;
  } finally {
    context.auditFor(request.raw).record({ sandbox_id: sandbox, op, ok });
  }
}

/**
 * Answers with lines. What goes wrong before the first is an error with its own status; afterwards `lastWords` tells it as the end of the
 * stream, since these clients read no error there.
 */
export async function answerLines(
  context: ServerContext,
  reply: FastifyReply,
  produce: (lines: JsonLines) => Promise<void>,
  lastWords: (error: MitosError) => object[],
): Promise<FastifyReply> {
  const lines = new JsonLines(reply);
  try {
    await produce(lines);
  } catch (error) {
    if (!lines.begun) throw error;
    const mitos = toMitosError(error);
    if (isOurFault(mitos)) context.log.error({ err: mitos.detail.reason ?? mitos }, "a stream failed");
    for (const line of lastWords(mitos)) await lines.write(line).catch(() => {});
  } finally {
    lines.end();
  }
  return reply;
}

/** The same error with more of what a program can read. */
export function inContext(error: unknown, context: Readonly<Record<string, string | number>>): MitosError {
  const { code, detail } = toMitosError(error);
  return new MitosError(code, { ...detail, context: { ...detail.context, ...context } });
}
