import type { FastifyInstance } from "fastify";
import type { ServerContext } from "../context.ts";
import { account } from "../metering.ts";

export function healthRoutes(app: FastifyInstance, context: ServerContext): void {
  const { version, metrics } = context;
  const { isolation } = context.engine;

  app.get("/v1/health", async (request) => {
    const engine = context.engineFor(request.raw);
    return {
      status: "ok",
      mock: isolation === "mock",
      templates: engine.listTemplates().length,
      sandboxes: engine.list().length,
      isolation,
      version,
    };
  });

  app.get("/healthz", async (_request, reply) => reply.type("text/plain").send(`ok (${isolation})\n`));

  app.get("/readyz", async (_request, reply) => {
    const problem = context.isClosing() ? "the server is going down" : await context.engine.unreadiness();
    return reply
      .code(problem ? 503 : 200)
      .type("text/plain")
      .send(`${problem ?? "ready"}\n`);
  });

  app.get("/metrics", async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()));

  app.get("/v1/metering", async (request) => account(await context.engineFor(request.raw).meterAll()));
}
