/**
 * `/v1/sandboxes/{id}/expose/{port}`: a port of a sandbox below the API's own address, for whoever may use the API. Errors are plain text.
 */

import { isId, limits, MitosError, type SandboxId } from "@mitos/protocol";
import { exposeAccess } from "../auth/access.ts";
import type { ServerContext } from "../context.ts";
import { isOurFault, toMitosError } from "../errors.ts";
import type { AnyRequest } from "../http/guard.ts";
import { endLateBody, retryAfter, sendPlain } from "../http/plain.ts";
import { isPort } from "../preview/token.ts";
import { endToEnd, headersOf, withForwarded } from "./headers.ts";
import { Places } from "./places.ts";
import { countVisit, isBrowser, responseOf, sandboxed, type Visit, visit } from "./ports.ts";

const pattern = /^(\/v1\/sandboxes\/([^/?#]+)\/expose\/([^/?#]+))(.*)$/s;

export interface Expose {
  accepts(request: AnyRequest): boolean;
  /** @param denied - why the caller is nobody who may use this server; undefined = somebody */
  serve(from: Visit, denied: MitosError | undefined): Promise<void>;
}

export function createExpose(context: ServerContext, upgraded: Places): Expose {
  const requests = new Places({ what: "requests to its ports", perSandboxMax: limits.exposedRequestsPerSandboxMax });
  return {
    accepts: ({ url = "" }) => pattern.test(url),
    async serve(from, denied) {
      const { request } = from;
      const [, prefix = "", id, portText = "", rest = ""] = pattern.exec(request.url ?? "") ?? [];
      try {
        const stream = from.kind === "upgrade" ? from.socket : from.response;
        const refused = denied ?? context.auth?.authorise(request, stream, exposeAccess, "expose");
        if (refused) throw refused;
        const engine = context.engineFor(request);
        refuseBrowsers(from);
        const port = /^\d{1,5}$/.test(portText) ? Number(portText) : 0;
        if (!isPort(port)) throw new MitosError("invalid_input", { cause: `${portText} is not a port: 1 to 65535` });
        if (!isId(id)) throw new MitosError("not_found", { cause: "the sandbox id is malformed" });
        const sandbox = id as SandboxId;
        const runtime = engine.runtime(sandbox);
        const headers = withForwarded(endToEnd(headersOf(request)), request, { prefix, scheme: "http" }).filter(
          ([name]) => name.toLowerCase() !== "authorization",
        );
        const status = await visit(
          from,
          {
            sandbox,
            runtime,
            port,
            method: request.method ?? "GET",
            target: rest.startsWith("/") ? rest : `/${rest}`,
            headers,
            rewrite: (answer) => [...answer, sandboxed],
          },
          { requests, upgraded },
          context.shutdown,
        );
        countVisit(context, "expose", from, status);
      } catch (error) {
        const mitos = toMitosError(error);
        if (isOurFault(mitos)) context.log.error({ sandbox: id, err: mitos.detail.reason ?? mitos }, "a request to a port failed");
        // As published: what a gateway says of a program that it does not reach.
        const status = mitos.code === "unavailable" ? 502 : mitos.entry.status;
        countVisit(context, "expose", from, status);
        endLateBody(request);
        const response = responseOf(from);
        if (!response.headersSent) sendPlain(response, status, plainText(mitos), retryAfter(mitos));
      }
    },
  };
}

/** A page that is shown here would be of the API's own origin. @throws forbidden */
function refuseBrowsers({ request }: Visit): void {
  if (!isBrowser(request)) return;
  throw new MitosError("forbidden", {
    cause: "a page from a sandbox must not share the address of the API",
    remediation: "Open the port in a browser by its preview: POST /v1/preview.",
  });
}

function plainText(error: MitosError): string {
  if (error.code === "unauthorized") return "unauthorized";
  return `${error.message}. ${error.detail.remediation ?? error.entry.remediation}`;
}
