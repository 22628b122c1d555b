import type { FastifyInstance } from "fastify";
import type { ServerContext } from "../context.ts";

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

  app.get("/readyz", async (_request, reply) =>
    context.isClosing() ? reply.code(503).type("text/plain").send("the server is going down\n") : reply.type("text/plain").send("ready\n"),
  );

  app.get("/metrics", async (_request, reply) => reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()));
}
