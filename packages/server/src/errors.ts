/** Errors of other worlds (Fastify, Node streams, anything thrown) as ours, and ours as what travels on Connect routes. */

import { Code, ConnectError } from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import { MitosError } from "@mitos/protocol";

/** Tells our own clients the catalogue's code on Connect routes; others ignore it. */
export const codeHeader = "Mitos-Error-Code";

export function toMitosError(error: unknown): MitosError {
  if (error instanceof MitosError) return error;
  if (error instanceof Error && error.name === "AbortError") return new MitosError("canceled", { reason: error });
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  switch (code) {
    case "FST_ERR_BAD_URL":
      return new MitosError("invalid_input", { cause: "the path is not valid percent-encoding", reason: error });
    case "FST_ERR_MAX_PARAM_LENGTH":
      return new MitosError("invalid_input", { cause: "a part of the path is too long", reason: error });
    // What Node says of a connection that the client has closed, by the moment in which it did.
    case "ECANCELED":
    case "ECONNRESET":
    case "EPIPE":
    case "ERR_STREAM_PREMATURE_CLOSE":
      return new MitosError("canceled", { reason: error });
    default:
      return new MitosError("internal", { reason: error });
  }
}

/** @returns whether the server, not the client or the sandbox, is to blame: such errors are logged with their reason. */
export function isOurFault(error: MitosError): boolean {
  return error.code === "internal";
}

export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  const mitos = toMitosError(error);
  const connect = new ConnectError(mitos.message, codeFromString(mitos.entry.connect) ?? Code.Unknown, { [codeHeader]: mitos.code });
  const retryAfter = retryAfterSeconds(mitos);
  if (retryAfter !== undefined) connect.metadata.set("Retry-After", retryAfter);
  return connect;
}

/** The value of `Retry-After`: whole seconds, at least one. */
export function retryAfterSeconds(error: MitosError): string | undefined {
  const { retryAfterMs } = error.detail;
  return retryAfterMs === undefined ? undefined : String(Math.max(1, Math.ceil(retryAfterMs / 1000)));
}
