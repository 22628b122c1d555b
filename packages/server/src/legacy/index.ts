/** The runtime routes of the 0.1.0 client; its terminal is a WebSocket: websocket/pty.ts. */

import type { FastifyInstance } from "fastify";
import type { ServerContext } from "../context.ts";
import { type AnyResponse, sendPlain } from "../http/plain.ts";
import { ptyPath } from "../websocket/pty.ts";
import { execRoutes } from "./exec.ts";
import { fileRoutes } from "./files.ts";
import { runCodeRoutes } from "./run-code.ts";
import { vitalsRoutes } from "./vitals.ts";

export function legacyRoutes(app: FastifyInstance, context: ServerContext): void {
  execRoutes(app, context);
  runCodeRoutes(app, context);
  fileRoutes(app, context);
  vitalsRoutes(app, context);
  app.get(ptyPath, { exposeHeadRoute: false }, (_request, reply) => {
    reply.hijack();
    sendPlain(reply.raw as AnyResponse, 426, "a terminal is a WebSocket", { Upgrade: "websocket", Connection: "Upgrade, close" });
  });
}
