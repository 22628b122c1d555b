import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type Blob, mediaTypes, type OciImage, type OciIndex } from "./oci.ts";
import { drained } from "./registry.ts";

/** A registry that says what it is told to, true or not: a real one would refuse to keep most of it. */
export interface ScriptedRegistry extends AsyncDisposable {
  readonly host: string;
  /** Paths that were asked for. */
  readonly requests: readonly string[];
  /** @returns the reference in full */
  put(image: OciImage | OciIndex, name: string): string;
  putBlob(blob: Blob): void;
  /** Another answer to what is asked under a digest or tag. */
  lie(about: string, answer: Partial<Answer>): void;
}

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array | AsyncIterable<Uint8Array>;
}

export async function startScriptedRegistry(): Promise<ScriptedRegistry> {
  const known = new Map<string, Blob>();
  const lies = new Map<string, Partial<Answer>>();
  const requests: string[] = [];
  const server = createServer((incoming, outgoing) => {
    requests.push(incoming.url ?? "");
    answer(incoming, outgoing, known, lies).catch(() => outgoing.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const keep = (blob: Blob) => known.set(blob.digest, blob);
  return {
    host,
    requests,
    putBlob: keep,
    put(image, name) {
      const [, repository = "", tag = ""] = /^([^:]+):(.+)$/.exec(name) ?? [];
      const top = "images" in image ? image.index : image.manifest;
      for (const { manifest, config, layers } of "images" in image ? image.images : [image]) [manifest, config, ...layers].forEach(keep);
      keep(top);
      known.set(`${repository}:${tag}`, top);
      return `${host}/${name}`;
    },
    lie: (about, said) => lies.set(about, said),
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

async function answer(
  { url = "", method, headers }: IncomingMessage,
  outgoing: ServerResponse,
  known: ReadonlyMap<string, Blob>,
  lies: ReadonlyMap<string, Partial<Answer>>,
): Promise<void> {
  if (/^\/v2\/?$/.test(url)) return void outgoing.writeHead(200, { "content-type": "application/json" }).end("{}");
  const [, repository = "", name = ""] = /^\/v2\/(.+)\/(?:blobs|manifests)\/(.+)$/.exec(url) ?? [];
  const blob = known.get(name) ?? known.get(`${repository}:${name}`);
  const lie = lies.get(name) ?? (blob ? lies.get(blob.digest) : undefined);
  if (!blob && !lie)
    return void outgoing.writeHead(404, { "content-type": "application/json" }).end('{"errors":[{"code":"NAME_UNKNOWN"}]}');
  const body = lie?.body ?? blob?.bytes ?? new Uint8Array();
  const said = {
    "content-type": url.includes("/blobs/") ? "application/octet-stream" : (blob?.mediaType ?? mediaTypes.manifest),
    ...(blob ? { "docker-content-digest": blob.digest } : {}),
    ...(body instanceof Uint8Array ? { "content-length": String(body.length) } : {}),
    ...lie?.headers,
  };
  const from = body instanceof Uint8Array && !lie ? Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0) : 0;
  if (from > 0 && body instanceof Uint8Array) {
    const range = {
      ...said,
      "content-length": String(body.length - from),
      "content-range": `bytes ${from}-${body.length - 1}/${body.length}`,
    };
    return void outgoing.writeHead(206, range).end(body.subarray(from));
  }
  outgoing.writeHead(lie?.status ?? 200, said);
  if (method === "HEAD") return void outgoing.end();
  if (body instanceof Uint8Array) return void outgoing.end(body);
  for await (const chunk of body) {
    if (outgoing.destroyed) return;
    if (!outgoing.write(chunk)) await drained(outgoing);
  }
  outgoing.end();
}
