import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { canConnect } from "../../packages/engine/src/drivers/host/can-connect.ts";
import { findImageTool } from "../../scripts/lib/image-tools.mjs";
import type { Blob, OciImage, OciIndex } from "./oci.ts";
import { until } from "./until.ts";

export interface RegistryOptions {
  /**
   * - `basic`: by the registry itself, from a htpasswd file
   * - `token`: as at Docker Hub: a token server that wants name and password, and gives a token for one repository and what is asked of it
   * - `anonymous-token`: the same, where pulling needs no name
   */
  readonly auth?: "none" | "basic" | "token" | "anonymous-token";
}

/** Whom registries with a wish for one know. */
export const registryUser = { username: "tester", password: "correct horse" };
/** Of that password. */
const bcrypt = "$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e";

export interface RegistryRequest {
  readonly method: string;
  readonly path: string;
  readonly status: number;
  /** Of the answer's body, as far as they were sent. */
  readonly bytes: number;
  readonly range: string;
}

/** A real registry (docker-registry) of this test's own, and a door before it that counts, cuts and holds. */
export interface Registry extends AsyncDisposable {
  /** `127.0.0.1:<port>`, as references name it. */
  readonly host: string;
  /** What was asked of it, other than by `push`, in the order in which it was answered. */
  readonly requests: readonly RegistryRequest[];
  /** Bytes of blobs that were handed out since the last `forgetRequests`. */
  readonly blobBytes: number;
  forgetRequests(): void;
  /** Cuts the connection of each of the next `times` downloads of a blob after `afterBytes`. Smaller blobs pass whole. */
  cutBlobs(afterBytes: number, times?: number): void;
  /** Keeps answers with blobs back until it is called. */
  holdBlobs(): () => void;
  /** @param name - `repository:tag`, or without a tag: by digest only @returns the reference in full */
  push(image: OciImage | OciIndex, name: string): Promise<string>;
}

export async function startRegistry({ auth = "none" }: RegistryOptions = {}): Promise<Registry> {
  const tool = findImageTool("docker-registry");
  if (!tool) throw new Error("docker-registry is missing: npm run setup");
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-registry-"));
  const socketPath = path.join(folder, "socket");
  writeFileSync(path.join(folder, "htpasswd"), `${registryUser.username}:${bcrypt}\n`);
  writeFileSync(path.join(folder, "config.yml"), configuration(folder, auth === "basic"));
  const child = spawn(tool.command, [...tool.args, "serve", path.join(folder, "config.yml")], {
    env: { ...process.env, ...tool.env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    said = `${said}${text}`.slice(-4096);
  });
  const listens = until("the registry listens", async () => (await canConnect(socketPath)) || ended(child));
  if (!(await listens.then(() => !ended(child)).catch(() => false))) {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
    throw new Error(`docker-registry did not start: ${said}`);
  }
  const door = new Door(socketPath, auth);
  const host = await door.listen();
  return {
    host,
    get requests() {
      return door.requests;
    },
    get blobBytes() {
      return door.requests.filter(({ path, method }) => method === "GET" && isBlob(path)).reduce((sum, { bytes }) => sum + bytes, 0);
    },
    forgetRequests: () => {
      door.requests.length = 0;
    },
    cutBlobs: (afterBytes, times = 1) => {
      door.cut = { afterBytes, times };
    },
    holdBlobs: () => {
      const { promise, resolve } = Promise.withResolvers<void>();
      door.held = promise;
      return resolve;
    },
    push: (image, name) => pushImage(door.pusher(host), host, image, name),
    async [Symbol.asyncDispose]() {
      await door.close();
      if (!ended(child)) {
        child.kill("SIGKILL");
        await once(child, "close");
      }
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function ended(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

function configuration(folder: string, basic: boolean): string {
  return JSON.stringify({
    version: "0.1",
    log: { level: "error", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: path.join(folder, "data") }, delete: { enabled: true } },
    http: { net: "unix", addr: path.join(folder, "socket"), secret: "of one test", relativeurls: true },
    ...(basic ? { auth: { htpasswd: { realm: "tests", path: path.join(folder, "htpasswd") } } } : {}),
  });
}

function isBlob(url: string): boolean {
  return /\/blobs\/sha256:/.test(url);
}

/** What stands before the registry. */
class Door {
  readonly requests: RegistryRequest[] = [];
  cut = { afterBytes: 0, times: 0 };
  held: Promise<void> = Promise.resolve();
  readonly #socketPath: string;
  readonly #auth: NonNullable<RegistryOptions["auth"]>;
  readonly #server = createServer((incoming, outgoing) => void this.#answer(incoming, outgoing));
  /** Token → `repository:actions` that it is for. */
  readonly #tokens = new Map<string, string>();
  /** Opens everything and is not counted. */
  readonly #own = randomBytes(16).toString("hex");

  constructor(socketPath: string, auth: NonNullable<RegistryOptions["auth"]>) {
    this.#socketPath = socketPath;
    this.#auth = auth;
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  pusher(host: string): Send {
    return async (method, address, body, headers = {}) => {
      const answer = await fetch(new URL(address, `http://${host}`), {
        method,
        headers: { ...headers, "x-own": this.#own, ...(this.#auth === "basic" ? { authorization: basicAuthorization() } : {}) },
        ...(body ? { body: body as Uint8Array<ArrayBuffer> } : {}),
      });
      const text = await answer.text();
      if (!answer.ok && !(method === "HEAD" && answer.status === 404)) throw new Error(`${method} ${address}: ${answer.status} ${text}`);
      return answer;
    };
  }

  async #answer(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const { method = "GET", url = "/", headers } = incoming;
    const isOwn = headers["x-own"] === this.#own;
    if (this.#auth.endsWith("token") && !isOwn) {
      if (url.startsWith("/token")) return this.#giveToken(incoming, outgoing);
      if (!this.#mayPass(incoming)) return this.#refuse(incoming, outgoing);
    }
    const { "x-own": _, ...passed } = headers;
    const asked = request({ socketPath: this.#socketPath, method, path: url, headers: passed }, (answer) => {
      void this.#passOn(answer, outgoing, { method, url, range: headers.range ?? "", isOwn });
    });
    asked.on("error", () => outgoing.destroy());
    incoming.pipe(asked);
  }

  async #passOn(
    answer: IncomingMessage,
    outgoing: ServerResponse,
    { method, url, range, isOwn }: { method: string; url: string; range: string; isOwn: boolean },
  ): Promise<void> {
    const isDownload = method === "GET" && isBlob(url) && !isOwn;
    if (isDownload) await this.held;
    const left = this.#cutAfter(isDownload, Number(answer.headers["content-length"] ?? 0));
    let bytes = 0;
    outgoing.on("close", () => {
      answer.destroy();
      if (!isOwn) this.requests.push({ method, path: url, status: answer.statusCode ?? 0, bytes, range });
    });
    outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
    answer.on("error", () => outgoing.destroy());
    for await (const chunk of answer as AsyncIterable<Buffer>) {
      const part = chunk.subarray(0, left - bytes);
      bytes += part.length;
      const more = outgoing.write(part);
      if (bytes >= left) {
        // What was sent is to arrive, and then nothing more.
        outgoing.socket?.end();
        return;
      }
      if (!more) await drained(outgoing);
      if (outgoing.destroyed) return;
    }
    outgoing.end();
  }

  #cutAfter(isDownload: boolean, length: number): number {
    if (!isDownload || this.cut.times === 0 || length <= this.cut.afterBytes) return Number.POSITIVE_INFINITY;
    this.cut.times--;
    return this.cut.afterBytes;
  }

  #giveToken({ url = "", headers }: IncomingMessage, outgoing: ServerResponse): void {
    const scope = new URL(url, "http://registry").searchParams.get("scope") ?? "";
    const isKnown = headers.authorization === basicAuthorization();
    const isOpen = this.#auth === "anonymous-token" && !/push|delete/.test(scope) && headers.authorization === undefined;
    this.requests.push({ method: "GET", path: url, status: isKnown || isOpen ? 200 : 401, bytes: 0, range: "" });
    if (!isKnown && !isOpen) {
      outgoing.writeHead(401, { "content-type": "application/json" }).end('{"errors":[{"code":"UNAUTHORIZED"}]}');
      return;
    }
    const token = randomBytes(16).toString("hex");
    this.#tokens.set(token, scope);
    outgoing.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ token, expires_in: 300 }));
  }

  #mayPass({ url = "", method = "GET", headers }: IncomingMessage): boolean {
    const scope = this.#tokens.get(headers.authorization?.replace(/^Bearer /, "") ?? "");
    if (scope === undefined) return false;
    const repository = repositoryOf(url);
    if (repository === null) return true;
    const [, named = "", actions = ""] = /^repository:(.+):([a-z,*]+)$/.exec(scope) ?? [];
    return named === repository && actions.split(",").includes(method === "GET" || method === "HEAD" ? "pull" : "push");
  }

  #refuse(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const { url = "", method = "GET" } = incoming;
    const repository = repositoryOf(url);
    const actions = method === "GET" || method === "HEAD" ? "pull" : "pull,push";
    const scope = repository === null ? "" : `,scope="repository:${repository}:${actions}"`;
    const challenge = `Bearer realm="http://${incoming.headers.host}/token",service="tests"${scope}`;
    this.requests.push({ method, path: url, status: 401, bytes: 0, range: "" });
    incoming.resume();
    outgoing
      .writeHead(401, { "www-authenticate": challenge, "content-type": "application/json" })
      .end('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}');
  }
}

/** Resolves when more can be written, or nothing will be. */
export function drained(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const go = () => {
      outgoing.off("drain", go).off("close", go);
      resolve();
    };
    outgoing.on("drain", go).on("close", go);
  });
}

function repositoryOf(url: string): string | null {
  return /^\/v2\/(.+?)\/(?:blobs|manifests|tags)\//.exec(url)?.[1] ?? null;
}

function basicAuthorization(): string {
  return `Basic ${Buffer.from(`${registryUser.username}:${registryUser.password}`).toString("base64")}`;
}

/** @throws unless the answer is a success; a HEAD may also find nothing */
type Send = (method: string, address: string, body?: Uint8Array, headers?: Record<string, string>) => Promise<Response>;

/** As any client pushes: blobs, configurations, manifests, and last what the tag names. */
async function pushImage(send: Send, host: string, pushed: OciImage | OciIndex, name: string): Promise<string> {
  const [, repository = "", tag] = /^([^:]+)(?::(.+))?$/.exec(name) ?? [];
  const images = "images" in pushed ? pushed.images : [pushed];
  const top = "images" in pushed ? pushed.index : pushed.manifest;
  for (const { manifest, config, layers } of images) {
    for (const blob of [...layers, config]) await pushBlob(send, repository, blob);
    await send("PUT", `/v2/${repository}/manifests/${manifest.digest}`, manifest.bytes, { "content-type": manifest.mediaType });
  }
  await send("PUT", `/v2/${repository}/manifests/${tag ?? top.digest}`, top.bytes, { "content-type": top.mediaType });
  return `${host}/${repository}${tag ? `:${tag}` : `@${top.digest}`}`;
}

async function pushBlob(send: Send, repository: string, { digest, bytes }: Blob): Promise<void> {
  if ((await send("HEAD", `/v2/${repository}/blobs/${digest}`)).ok) return;
  const { headers } = await send("POST", `/v2/${repository}/blobs/uploads/`);
  const location = headers.get("location") ?? "";
  const address = `${location}${location.includes("?") ? "&" : "?"}digest=${encodeURIComponent(digest)}`;
  await send("PUT", address, bytes, { "content-type": "application/octet-stream" });
}
