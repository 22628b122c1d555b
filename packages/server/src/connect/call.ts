/** What is the same for every RPC: whose sandbox, when it ends, its errors, its line in the audit log. */

import { Code, ConnectError, type ContextValues, createContextKey } from "@connectrpc/connect";
import type { Runtime } from "@mitos/engine";
import { isId, MitosError, type SandboxId } from "@mitos/protocol";
import type { ServerContext } from "../context.ts";
import { isOurFault, toConnectError, toMitosError } from "../errors.ts";
import type { AnyRequest } from "../http/guard.ts";
import { clientSignal, type EndSignals } from "../stream/follow.ts";

/** The request that an RPC came with. */
export const rawRequest = createContextKey<AnyRequest | undefined>(undefined);

/** What an RPC is told of its request beside the message: a part of what connect-es tells. */
export interface RpcContext {
  readonly requestHeader: { get(name: string): string | null };
  /** Fires when the client has gone or its deadline is over. */
  readonly signal: AbortSignal;
  readonly values: ContextValues;
}

export const contextHeader = "Mitos-Context";

export interface Call {
  readonly context: ServerContext;
  readonly sandbox: SandboxId;
  /** @throws not_found, idle_timeout, sandbox_not_running, … */
  readonly runtime: () => Runtime;
  readonly signals: EndSignals;
  /** Which interpreter code is to run in: what `sandbox.v1` has no field for. Undefined = the language's default one. @throws invalid_input */
  readonly codeContext: () => string | undefined;
}

export function unary<Request, Response>(context: ServerContext, op: string, handle: (request: Request, call: Call) => Promise<Response>) {
  return async (request: Request, handler: RpcContext): Promise<Response> => {
    const record = recorder(context, op, handler);
    try {
      const response = await handle(request, toCall(context, handler));
      record(true);
      return response;
    } catch (error) {
      record(false);
      throw translated(context, op, handler, error);
    }
  };
}

export function streaming<Request, Response>(
  context: ServerContext,
  op: string,
  handle: (request: Request, call: Call) => AsyncIterable<Response>,
) {
  return async function* (request: Request, handler: RpcContext): AsyncGenerator<Response> {
    const record = recorder(context, op, handler);
    let ok = false;
    try {
      yield* handle(request, toCall(context, handler));
      ok = true;
    } catch (error) {
      throw translated(context, op, handler, error);
    } finally {
      record(ok);
    }
  };
}

function toCall(context: ServerContext, handler: RpcContext): Call {
  const version = handler.requestHeader.get("Connect-Protocol-Version");
  if (version !== null && version !== "1") {
    throw new ConnectError(`Connect-Protocol-Version must be 1, not ${version.slice(0, 20)}`, Code.InvalidArgument);
  }
  const sandbox = sandboxOf(handler);
  return {
    context,
    sandbox,
    runtime: () => context.engineFor(requestOf(handler)).runtime(sandbox),
    signals: { client: clientSignal(handler.signal, context.shutdown), shutdown: context.shutdown },
    codeContext: () => parseCodeContext(handler.requestHeader.get(contextHeader)),
  };
}

/** @throws invalid_input */
export function parseCodeContext(header: string | string[] | null | undefined): string | undefined {
  if (header === null || header === undefined) return undefined;
  if (!isId(header)) throw new MitosError("invalid_input", { cause: `${contextHeader} is not the id of a context` });
  return header;
}

function requestOf(handler: RpcContext): AnyRequest {
  const request = handler.values.get(rawRequest);
  if (!request) throw new Error("broken invariant: an RPC without its request");
  return request;
}

function sandboxOf(handler: RpcContext): SandboxId {
  const id = handler.requestHeader.get("X-Sandbox-Id");
  if (!isId(id)) throw new MitosError("invalid_input", { cause: id ? "X-Sandbox-Id is malformed" : "X-Sandbox-Id is missing" });
  return id as SandboxId;
}

function recorder(context: ServerContext, op: string, handler: RpcContext): (ok: boolean) => void {
  const audit = context.auditFor(requestOf(handler));
  const id = handler.requestHeader.get("X-Sandbox-Id");
  return (ok) => audit.record({ sandbox_id: isId(id) ? id : "", op, ok });
}

function translated({ log }: ServerContext, op: string, handler: RpcContext, error: unknown): ConnectError {
  // The deadline or the client's own reset says more than what its abort made of the work.
  if (handler.signal.aborted && handler.signal.reason instanceof ConnectError) return handler.signal.reason;
  if (error instanceof ConnectError) return error;
  const mitos = toMitosError(error);
  if (isOurFault(mitos)) {
    const requestId = handler.requestHeader.get("X-Request-Id");
    log.error({ requestId, op, err: mitos.detail.reason ?? mitos }, "an RPC failed");
  }
  return toConnectError(mitos);
}

/** The first message of a client stream, which must be `open`. @throws invalid_input */
export async function firstMessage<T>(requests: AsyncIterable<T>): Promise<{ first: T; rest: AsyncIterable<T> }> {
  const iterator = requests[Symbol.asyncIterator]();
  const first = await iterator.next();
  if (first.done) throw notOpen();
  return { first: first.value, rest: { [Symbol.asyncIterator]: () => iterator } };
}

export function notOpen(): MitosError {
  return new MitosError("invalid_input", { cause: "the first message must be open" });
}
