import type { PreviewTerms } from "@mitos/engine";
import { type ForwardJson, MitosError, type PreviewJson } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { authorityOf } from "../http/guard.ts";
import { check, readJson } from "../http/json.ts";
import { hostFor, previewPathPrefix } from "../preview/address.ts";
import { labelOf, nameOf } from "../preview/label.ts";
import { previewsOff } from "../preview/proxy.ts";
import type { PreviewSigner } from "../preview/token.ts";
import type { Forwards } from "../proxy/forwards.ts";
import { existing, sandboxName } from "../schemas.ts";
import { endpointOf } from "../shapes.ts";

const port = z.int().min(1, "must be 1 to 65535").max(65_535, "must be 1 to 65535");
const previewBody = z.object({ sandbox: sandboxName, port });
const forwardBody = z.object({ guest_port: port });
const params = z.object({ id: sandboxName });

export interface PortRoutesOptions {
  /** Undefined = previews are off. */
  readonly signer: PreviewSigner | undefined;
  readonly domain: string | undefined;
  readonly ttlSeconds: number;
  readonly terms: PreviewTerms;
  readonly forwards: Forwards;
}

export function portRoutes(
  app: FastifyInstance,
  context: ServerContext,
  { signer, domain, ttlSeconds, terms, forwards }: PortRoutesOptions,
): void {
  app.post("/v1/preview", async (request): Promise<PreviewJson> => {
    if (!signer) throw previewsOff();
    const { sandbox: name, port } = await readJson(request, previewBody);
    const sandbox = existing(name);
    context.engineFor(request.raw).get(sandbox);
    const expiresUnix = terms.issue(sandbox, Math.floor(Date.now() / 1000) + ttlSeconds);
    const token = signer.sign({ sandbox, port, expiresUnix });
    context.auditFor(request.raw).record({ sandbox_id: sandbox, op: "preview", detail: `port=${port}`, ok: true });
    const label = labelOf(sandbox, port);
    const pathUrl = `${endpointOf(request)}${previewPathPrefix}${label}/?token=${token}`;
    const origin = hostFor(label, authorityOf(request.raw), domain);
    return {
      url: domain === undefined ? pathUrl : `https://${nameOf(sandbox)}.${domain}/?token=${token}`,
      expires_unix: expiresUnix,
      path_url: pathUrl,
      ...(origin ? { browser_url: `${origin.scheme}://${origin.host}/?token=${token}` } : {}),
    };
  });

  app.post("/v1/sandboxes/:id/forward", async (request): Promise<ForwardJson> => {
    const engine = context.engineFor(request.raw);
    if (engine.driverName === "mock")
      throw new MitosError("not_supported", { cause: "the mock engine runs nothing that could be forwarded to" });
    const { id: name } = check(params, request.params);
    const { guest_port } = await readJson(request, forwardBody);
    const id = existing(name);
    // Its state first: a forward to what has ended would never end.
    engine.runtime(id);
    let ok = false;
    try {
      const hostPort = await forwards.open(id, guest_port);
      ok = true;
      return { host: `127.0.0.1:${hostPort}`, guest_port };
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: id, op: "forward", detail: `port=${guest_port}`, ok });
    }
  });
}
