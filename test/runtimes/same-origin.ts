import { readFileSync } from "node:fs";
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";

/** A web server as an application has one: its own pages, and a Mitos server behind the paths of the API. */
export interface SameOrigin extends AsyncDisposable {
  readonly url: string;
}

const apiPaths = /^\/(v1|sandbox\.v1\.Sandbox)\//;

/**
 * `Host` and `Origin` stay as the browser sent them: the server sees that a page asks its own host.
 *
 * @param files - URL path → file
 */
export async function serveSameOrigin(mitosUrl: string, files: Readonly<Record<string, string>>): Promise<SameOrigin> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://page");
    if (apiPaths.test(pathname)) return forward(mitosUrl, request, response);
    const file = files[pathname];
    if (!file) return void response.writeHead(404).end();
    response
      .writeHead(200, { "Content-Type": file.endsWith(".html") ? "text/html" : "text/javascript" })
      .end(readFileSync(path.resolve(file)));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

/** Both bodies flow as they come, and a page that leaves takes its request with it. */
function forward(mitosUrl: string, request: IncomingMessage, response: ServerResponse): void {
  const { method, headers } = request;
  const upstream = httpRequest(new URL(request.url ?? "/", mitosUrl), { method, headers }, (answer) => {
    response.writeHead(answer.statusCode ?? 502, answer.headers);
    response.flushHeaders();
    answer.pipe(response);
  });
  upstream.on("error", () => response.destroy());
  response.on("close", () => upstream.destroy());
  request.pipe(upstream);
}
