import type { FastifyInstance } from "fastify";
import type { ServerContext } from "../context.ts";
import { account } from "../metering.ts";

export function healthRoutes(app: FastifyInstance, context: ServerContext): void {
  const { engine, version, metrics } = context;

  app.get("/v1/health", async () => ({
    status: "ok",
    mock: engine.isolation === "mock",
    templates: engine.listTemplates().length,
    sandboxes: engine.list().length,
    isolation: engine.isolation,
    version,
  }));

  app.get("/healthz", async (_request, reply) => reply.type("text/plain").send(`ok (${engine.isolation})\n`));

  app.get("/readyz", async (_request, reply) => {
    const problem = context.isClosing() ? "the server is going down" : await engine.unreadiness();
    return reply
      .code(problem ? 503 : 200)
      .type("text/plain")
      .send(`${problem ?? "ready"}\n`);
  });

  app.get("/metrics", async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()));

  app.get("/v1/metering", async () => account(await engine.meterAll()));
}
