import type { McpServer, Server } from "@modelcontextprotocol/server";

/** One client. */
export interface Session {
  /** A protocol server for it: one for its whole life, or over HTTP since 2026-07-28 one for each of its requests. */
  createServer(): McpServer | Server;
  /** The client has gone. */
  end(): Promise<void>;
}

export type OpenSession = () => Session;
