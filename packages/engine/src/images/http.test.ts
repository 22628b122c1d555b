import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { inspect } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Authenticator } from "./auth.ts";
import { DockerConfig } from "./docker-config.ts";
import { endpointOf } from "./endpoint.ts";
import { FakeRegistry, HastyClock } from "./fake-registry.ts";
import { HttpClient } from "./http.ts";
import { digestOf, Registry } from "./registry.ts";

const content = Buffer.from("content");
const blob = { mediaType: "", digest: digestOf(content), bytes: content.length };
const name = "registry.example";

/** A proxy that leads every name to one place on loopback, or refuses. */
class LeadingProxy implements AsyncDisposable {
  readonly asked: { target: string; authorization: string | undefined }[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(port: number | null) {
    this.#server = createServer((_, response) => response.writeHead(500).end());
    this.#server.on("connection", (socket) => this.#sockets.add(socket));
    this.#server.on("connect", (request, socket: Socket) => {
      this.asked.push({ target: request.url ?? "", authorization: request.headers["proxy-authorization"] });
      if (port === null) return socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
      const upstream = connect(port, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        upstream.pipe(socket).pipe(upstream);
      });
      this.#sockets.add(upstream);
      for (const each of [socket, upstream]) each.on("error", () => {});
    });
  }

  static async start(port: number | null): Promise<LeadingProxy> {
    const proxy = new LeadingProxy(port);
    await new Promise<void>((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    process.env.HTTPS_PROXY = `http://user:proxy-secret@127.0.0.1:${(proxy.#server.address() as AddressInfo).port}`;
    process.env.HTTP_PROXY = process.env.HTTPS_PROXY;
    return proxy;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

describe("a registry behind TLS and a proxy", () => {
  const dir = mkdtempSync(path.join(tmpdir(), "mitos-tls-"));
  const before = { certificates: getCACertificates("default"), env: { ...process.env } };
  let tls: { key: string; cert: string } | undefined;
  beforeAll(() => {
    const [key, cert] = [path.join(dir, "key.pem"), path.join(dir, "cert.pem")];
    const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(" ");
    const subject = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=DNS:${name},IP:127.0.0.1`];
    const { error } = spawnSync("openssl", [...request, "-keyout", key, "-out", cert, ...subject]);
    if (error) return;
    tls = { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
    setDefaultCACertificates([tls.cert]);
  });
  beforeEach(({ skip }) => skip(tls === undefined, "openssl is not installed, which makes the certificate"));
  afterEach(() => {
    for (const variable of ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"]) {
      const value = before.env[variable];
      if (value === undefined) delete process.env[variable];
      else process.env[variable] = value;
    }
  });
  afterAll(() => {
    setDefaultCACertificates(before.certificates);
    rmSync(dir, { recursive: true });
  });

  function clientOf(host: string): Registry {
    const clock = new HastyClock();
    const http = new HttpClient(clock);
    return new Registry(
      endpointOf(host, new Set()),
      http,
      new Authenticator(http, clock, new DockerConfig("/nonexistent/config.json")),
      clock,
    );
  }

  it("is reached through the proxy by its name, encrypted, and its certificate is checked", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.end(content), tls);
    await using proxy = await LeadingProxy.start(registry.port);
    expect(await clientOf(name).smallBlob("team/tool", blob)).toEqual(content);
    expect(proxy.asked).toEqual([{ target: `${name}:443`, authorization: `Basic ${Buffer.from("user:proxy-secret").toString("base64")}` }]);
    const failure = await clientOf("other.example")
      .smallBlob("team/tool", blob)
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unavailable", message: expect.stringContaining("certificate") });
    expect(registry.asked).toHaveLength(1);
  });

  it("is reached past the proxy when it is on loopback", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.end(content));
    await using proxy = await LeadingProxy.start(null);
    expect(await registry.client().smallBlob("team/tool", blob)).toEqual(content);
    expect(proxy.asked).toEqual([]);
  });

  it("cannot be reached when the proxy refuses, and the proxy's password is not told", async () => {
    await using _ = await LeadingProxy.start(null);
    const failure = await clientOf(name)
      .smallBlob("team/tool", blob)
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unavailable" });
    expect(inspect(failure, { depth: 10, showHidden: true })).not.toContain("proxy-secret");
  });

  it("is not followed out of TLS, neither by a redirect nor to a token service nor with an upload", async () => {
    await using plain = await FakeRegistry.start((_, response) => response.end(content));
    await using registry = await FakeRegistry.start((asked, response) => {
      if (asked.method === "POST") response.writeHead(202, { location: `${plain.origin}/upload` }).end();
      else if (asked.url.includes("token")) response.writeHead(401, { "www-authenticate": `Bearer realm="${plain.origin}/token"` }).end();
      else response.writeHead(307, { location: `${plain.origin}/blob` }).end();
    }, tls);
    await using _ = await LeadingProxy.start(registry.port);
    const client = clientOf(name);
    await expect(client.smallBlob("team/tool", blob)).rejects.toMatchObject({
      code: "build_failed",
      message: expect.stringContaining("TLS"),
    });
    await expect(client.smallBlob("team/token", blob)).rejects.toMatchObject({
      code: "unauthorized",
      message: expect.stringContaining("TLS"),
    });
    await expect(client.uploadBlob("team/tool", blob, async function* () {})).rejects.toMatchObject({ code: "build_failed" });
    expect(plain.asked).toEqual([]);
  });
});
