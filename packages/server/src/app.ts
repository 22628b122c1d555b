/** The `/v1` routes: body, errors and logging are the same for all of them. */

import { randomUUID } from "node:crypto";
import { MitosError } from "@mitos/protocol";
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, type HTTPMethods } from "fastify";
import { accessOfRoute } from "./auth/access.ts";
import type { ServerContext } from "./context.ts";
import { isOurFault, toMitosError } from "./errors.ts";
import type { AnyRequest } from "./http/guard.ts";
import type { HeldBody } from "./http/held-bodies.ts";
import { type AnyResponse, endLateBody, retryAfter, sendEnvelope, sendPlain } from "./http/plain.ts";
import { describeRequest } from "./http/tracing.ts";
import { legacyRoutes } from "./legacy/index.ts";
import { buildContextRoutes } from "./routes/build-contexts.ts";
import { contextRoutes } from "./routes/contexts.ts";
import { diskRoutes } from "./routes/disk.ts";
import { fileRoutes } from "./routes/files.ts";
import { forkRoutes } from "./routes/fork.ts";
import { healthRoutes } from "./routes/health.ts";
import { imageRoutes } from "./routes/images.ts";
import { keyRoutes } from "./routes/keys.ts";
import { lifecycleRoutes } from "./routes/lifecycle.ts";
import { type PortRoutesOptions, portRoutes } from "./routes/ports.ts";
import { processRoutes } from "./routes/processes.ts";
import { sandboxRoutes } from "./routes/sandboxes.ts";
import { templateRoutes } from "./routes/templates.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** What the server keeps of the body, until the answer is over or its client has left. */
    heldBody: HeldBody;
  }
  interface FastifyContextConfig {
    /** Only says that a path has other methods. */
    refusesMethod?: true;
  }
}

const methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] as const satisfies HTTPMethods[];
/** No route takes it. */
const refusedMethod = "OPTIONS" satisfies (typeof methods)[number];

export async function createApp(context: ServerContext, ports: PortRoutesOptions): Promise<FastifyInstance> {
  const app = Fastify({
    genReqId: () => randomUUID(),
    routerOptions: { maxParamLength: 512 },
    // Before any hook, and without what the hooks below do.
    frameworkErrors: (error, request, reply) => {
      reply.hijack();
      endLateBody(request.raw);
      sendEnvelope(reply.raw as AnyResponse, toMitosError(error));
    },
  });
  // Handlers read bodies themselves: some are streams, and the limits and errors are ours.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("*", (_request, _payload, done) => done(null));
  app.setReplySerializer((payload) => `${JSON.stringify(payload)}\n`);

  app.decorateRequest("heldBody");
  app.addHook("onRequest", async (request, reply) => {
    reply.header("X-Request-Id", request.id);
    // Nothing goes by it, and Fastify refuses one that is malformed.
    request.raw.headers["content-type"] = "application/octet-stream";
    authorise(context, request, reply);
    checkQueryEncoding(request.raw.url ?? "");
    const held = context.holdBody(request.raw, `${request.method} ${request.routeOptions.url}`);
    reply.raw.once("close", () => held[Symbol.dispose]());
    request.heldBody = held;
  });
  app.addHook("onSend", async (_request, reply, payload) => {
    if (String(reply.getHeader("content-type")).startsWith("application/json")) reply.header("content-type", "application/json");
    return payload;
  });
  app.addHook("onResponse", async (request, reply) => {
    const route = request.routeOptions.url ?? "unknown";
    const { method, id: requestId } = request;
    endLateBody(request.raw);
    const status = reply.raw.statusCode;
    context.metrics.requests.inc({ method, route, status });
    const sandbox = (request.params as { id?: string } | undefined)?.id;
    describeRequest(request.raw, { route, sandbox, requestId });
    context.log.debug({ requestId, method, route, status, ms: Math.round(reply.elapsedTime), ...(sandbox ? { sandbox } : {}) }, "answered");
  });
  app.setErrorHandler((error, request, reply) => sendError(context, error, request, reply));
  app.setNotFoundHandler((_request, reply) => {
    reply.hijack();
    sendPlain(reply.raw as AnyResponse, 404, "404 page not found");
  });

  const known = new Map<string, Set<string>>();
  app.addHook("onRoute", ({ url, method, config }) => {
    if (config?.refusesMethod) return;
    const allowed = known.get(url) ?? new Set();
    for (const one of [method].flat()) {
      accessOfRoute(one, url);
      allowed.add(one);
    }
    known.set(url, allowed);
  });
  healthRoutes(app, context);
  templateRoutes(app, context);
  buildContextRoutes(app, context);
  imageRoutes(app, context);
  diskRoutes(app, context);
  forkRoutes(app, context);
  sandboxRoutes(app, context);
  lifecycleRoutes(app, context);
  fileRoutes(app, context);
  contextRoutes(app, context);
  processRoutes(app, context);
  keyRoutes(app, context);
  portRoutes(app, context, ports);
  legacyRoutes(app, context);
  for (const [url, allowed] of [...known]) refuseOtherMethods(app, url, [...allowed]);

  await app.ready();
  return app;
}

/** Whatever else a client calls its method, such as TRACE or PROPFIND, the router gets one that is refused where the path exists. */
export function withKnownMethod(request: AnyRequest): AnyRequest {
  // The types of HTTP/2 know no setter, where there is one.
  if (!methods.some((method) => method === request.method)) (request as { method: string }).method = refusedMethod;
  return request;
}

/** @throws forbidden, quota_exceeded */
function authorise({ auth }: ServerContext, request: FastifyRequest, reply: FastifyReply): void {
  const { url, config } = request.routeOptions;
  // What does not exist, or not with this method, is answered so to everybody who has a key.
  if (!auth || url === undefined || config.refusesMethod) return;
  const refused = auth.authorise(request.raw, reply.raw as AnyResponse, accessOfRoute(request.method, url), `${request.method} ${url}`);
  if (refused) throw refused;
}

/** Fastify would take what does not decode as it stands, and a file of that name would be written. @throws invalid_input */
function checkQueryEncoding(url: string): void {
  const at = url.indexOf("?");
  if (at < 0) return;
  try {
    decodeURIComponent(url.slice(at));
  } catch (error) {
    throw new MitosError("invalid_input", { cause: "the query is not valid percent-encoding of UTF-8", reason: error });
  }
}

function refuseOtherMethods(app: FastifyInstance, url: string, allowed: readonly string[]): void {
  const refused = methods.filter((method) => !allowed.includes(method));
  const allow = allowed.join(", ");
  app.route({
    url,
    method: refused,
    exposeHeadRoute: false,
    config: { refusesMethod: true },
    handler: (_request, reply) => {
      reply.hijack();
      sendPlain(reply.raw as AnyResponse, 405, "405 method not allowed", { Allow: allow });
    },
  });
}

function sendError(context: ServerContext, error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const mitos = toMitosError(error);
  const { log } = context;
  const route = request.routeOptions?.url ?? "unknown";
  if (isOurFault(mitos)) log.error({ requestId: request.id, route, err: mitos.detail.reason ?? mitos }, "a request failed");
  if (reply.raw.headersSent || reply.sent) {
    // The answer has begun: only the end of its stream can still say that it failed.
    log.debug({ requestId: request.id, route, code: mitos.code }, "an answer was broken off");
    (reply.raw as AnyResponse).stream?.close(2);
    request.raw.destroy();
    return;
  }
  const shown = mitos.code === "internal" ? new MitosError("internal", { cause: `request ${request.id}` }) : mitos;
  reply.code(shown.entry.status).headers(retryAfter(shown)).send(shown.toEnvelope());
}
