import { createHash } from "node:crypto";
import type { MitosError } from "@mitos/protocol";
import type { Clock } from "../clock.ts";
import type { Digest } from "../layers/layer.ts";
import type { Authenticator } from "./auth.ts";
import type { Endpoint } from "./endpoint.ts";
import { type HttpClient, type HttpRequest, type HttpResponse, readAll } from "./http.ts";
import { acceptedManifests, type Descriptor, manifestBytesMax } from "./manifest.ts";
import { asImageError, asRefusal, retryAfterMs, unusableImage } from "./registry-error.ts";
import { withRetries } from "./retries.ts";

const redirectsMax = 5;
const redirectStatuses = new Set([301, 302, 303, 307, 308]);
/** What is larger is sent in pieces of this size: many proxies take no larger requests. */
const uploadPieceBytes = 64 * 1024 * 1024;
/** A registry checks or moves a blob before it answers. */
const uploadSilenceMsMax = 5 * 60_000;

/** Reads a part of what is to be uploaded; `end` is not in it. */
export type OpenPart = (start: number, end: number) => AsyncIterable<Uint8Array>;

interface Question extends Omit<HttpRequest, "url" | "headers"> {
  /** Below the origin, or a place that the registry itself has named. */
  readonly url: string | URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly scopes: readonly string[];
}

/** The OCI distribution API of one registry. Retries what may pass; every failure is one of the catalogue. */
export class Registry {
  readonly endpoint: Endpoint;
  readonly #http: HttpClient;
  readonly #auth: Authenticator;
  readonly #clock: Clock;

  constructor(endpoint: Endpoint, http: HttpClient, auth: Authenticator, clock: Clock) {
    this.endpoint = endpoint;
    this.#http = http;
    this.#auth = auth;
    this.#clock = clock;
  }

  /** @param reference - tag or digest; a digest is verified @throws not_found, unauthorized, unavailable, build_failed, canceled */
  async manifest(path: string, reference: string, signal?: AbortSignal) {
    const what = this.#name(path, reference);
    const { bytes, contentType } = await this.#retrying(what, signal, async () => {
      const response = await this.#ask(this.#manifest("GET", path, reference, signal));
      if (response.status !== 200) throw await this.#refusal(response, what);
      const body = await readAll(response, manifestBytesMax);
      if (!body) throw unusableImage(`${what}: its manifest has more than ${manifestBytesMax} bytes`);
      return { bytes: body, contentType: response.headers["content-type"] ?? "" };
    });
    const digest = digestOf(bytes);
    if (reference.startsWith("sha256:") && digest !== reference) {
      throw unusableImage(`${what}: ${this.endpoint.host} sends a manifest with the digest ${digest}`);
    }
    return { bytes, digest, contentType };
  }

  /** What the registry says that a tag means; undefined when it does not say or there is none. @throws unauthorized, unavailable, canceled */
  async digestOf(path: string, reference: string, signal?: AbortSignal): Promise<string | undefined> {
    const what = this.#name(path, reference);
    return await this.#retrying(what, signal, async () => {
      const response = await this.#ask(this.#manifest("HEAD", path, reference, signal));
      if (response.status !== 200 && response.status !== 404) throw await this.#refusal(response, what);
      response.drop();
      const digest = response.headers["docker-content-digest"];
      return response.status === 200 && typeof digest === "string" ? digest : undefined;
    });
  }

  /** A blob from a byte on: 206 from there, or 200 from its beginning. One attempt. */
  async openBlob(path: string, digest: Digest, from: number, signal?: AbortSignal): Promise<HttpResponse> {
    const response = await this.#ask({
      method: "GET",
      url: `/v2/${path}/blobs/${digest}`,
      scopes: [pull(path)],
      // What is compressed on the way could not be resumed, and its length would be another.
      headers: { "accept-encoding": "identity", ...(from > 0 ? { range: `bytes=${from}-` } : {}) },
      signal,
    });
    if (response.status === 200 || response.status === 206 || (response.status === 416 && from > 0)) return response;
    throw await this.#refusal(response, this.#name(path, digest));
  }

  /** A blob that fits into memory, verified. @throws not_found, unauthorized, unavailable, build_failed, canceled */
  async smallBlob(path: string, { digest, bytes }: Descriptor, signal?: AbortSignal): Promise<Buffer> {
    const what = this.#name(path, digest);
    return await this.#retrying(what, signal, async () => {
      const body = await readAll(await this.openBlob(path, digest, 0, signal), bytes);
      if (body?.length !== bytes) throw unusableImage(`${what}: ${this.endpoint.host} sends another number of bytes than ${bytes}`);
      if (digestOf(body) !== digest) throw unusableImage(`${what}: ${this.endpoint.host} sends content with another digest`);
      return body;
    });
  }

  async hasBlob(path: string, digest: Digest, signal?: AbortSignal): Promise<boolean> {
    const what = this.#name(path, digest);
    return await this.#retrying(what, signal, async () => {
      const response = await this.#ask({ method: "HEAD", url: `/v2/${path}/blobs/${digest}`, scopes: [pushTo(path)], signal });
      response.drop();
      if (response.status === 200) return true;
      if (response.status === 404) return false;
      throw await this.#refusal(response, what);
    });
  }

  /** Has the registry take a blob over from another of its repositories. False: it does not want to, or there is none. */
  async mountBlob(path: string, digest: Digest, from: string, signal?: AbortSignal): Promise<boolean> {
    const query = new URLSearchParams({ mount: digest, from });
    return await this.#retrying(this.#name(path, digest), signal, async () => {
      const response = await this.#ask({
        method: "POST",
        url: `/v2/${path}/blobs/uploads/?${query}`,
        scopes: [pushTo(path), pull(from)],
        body: new Uint8Array(),
        signal,
      });
      // Else an upload is begun (202), which the registry forgets by itself when nothing comes.
      if (response.status >= 500) throw await this.#refusal(response, this.#name(path, digest));
      response.drop();
      return response.status === 201;
    });
  }

  /** @throws unauthorized, unavailable, build_failed, canceled */
  async uploadBlob(path: string, blob: Descriptor, open: OpenPart, signal?: AbortSignal): Promise<void> {
    const what = this.#name(path, blob.digest);
    await this.#retrying(what, signal, async () => {
      let at = await this.#beginUpload(path, what, signal);
      const inPieces = blob.bytes > uploadPieceBytes;
      if (inPieces) at = await this.#uploadPieces(path, what, at, blob, open, signal);
      // Appended as it is: to write the registry's own query anew could change it.
      at.search = `${at.search === "" ? "" : `${at.search}&`}digest=${encodeURIComponent(blob.digest)}`;
      const response = await this.#ask({
        method: "PUT",
        url: at,
        scopes: [pushTo(path)],
        headers: { "content-type": "application/octet-stream" },
        body: inPieces ? new Uint8Array() : { chunks: open(0, blob.bytes), bytes: blob.bytes },
        silenceMsMax: uploadSilenceMsMax,
        signal,
      });
      if (response.status !== 201) throw await this.#refusal(response, what);
      response.drop();
    });
  }

  /** @returns its digest, as computed here and confirmed by the registry */
  async putManifest(path: string, tag: string, mediaType: string, bytes: Uint8Array, signal?: AbortSignal): Promise<Digest> {
    const what = this.#name(path, tag);
    const digest = digestOf(bytes);
    const confirmed = await this.#retrying(what, signal, async () => {
      const response = await this.#ask({
        method: "PUT",
        url: `/v2/${path}/manifests/${tag}`,
        scopes: [pushTo(path)],
        headers: { "content-type": mediaType },
        body: bytes,
        silenceMsMax: uploadSilenceMsMax,
        signal,
      });
      if (response.status !== 201) throw await this.#refusal(response, what);
      response.drop();
      return response.headers["docker-content-digest"];
    });
    if ((confirmed ?? (await this.digestOf(path, digest, signal))) !== digest) {
      throw unusableImage(
        `${what}: ${this.endpoint.host} has stored another manifest than ${digest}`,
        "Push it again, or to another registry.",
      );
    }
    return digest;
  }

  async #beginUpload(path: string, what: string, signal: AbortSignal | undefined): Promise<URL> {
    const url = `/v2/${path}/blobs/uploads/`;
    const response = await this.#ask({ method: "POST", url, scopes: [pushTo(path)], body: new Uint8Array(), signal });
    if (response.status !== 202) throw await this.#refusal(response, what);
    response.drop();
    return this.#placeOf(response, new URL(url, this.endpoint.origin));
  }

  /** @returns the place at which the upload is finished */
  async #uploadPieces(
    path: string,
    what: string,
    begun: URL,
    blob: Descriptor,
    open: OpenPart,
    signal: AbortSignal | undefined,
  ): Promise<URL> {
    let place = begun;
    let start = 0;
    while (start < blob.bytes) {
      await this.#retrying(what, signal, async ({ number }) => {
        if (number > 0) [place, start] = await this.#progressOf(path, what, place, signal);
        const end = Math.min(start + uploadPieceBytes, blob.bytes);
        const response = await this.#ask({
          method: "PATCH",
          url: place,
          scopes: [pushTo(path)],
          headers: { "content-type": "application/octet-stream", "content-range": `${start}-${end - 1}` },
          body: { chunks: open(start, end), bytes: end - start },
          silenceMsMax: uploadSilenceMsMax,
          signal,
        });
        if (response.status !== 202) throw await this.#refusal(response, what);
        response.drop();
        place = this.#placeOf(response, place);
        start = end;
      });
    }
    return place;
  }

  /** How far an upload has come, by its registry's word. */
  async #progressOf(path: string, what: string, place: URL, signal: AbortSignal | undefined): Promise<[URL, number]> {
    const response = await this.#ask({ method: "GET", url: place, scopes: [pushTo(path)], signal });
    if (response.status !== 204) throw await this.#refusal(response, what);
    response.drop();
    const last = /^(?:bytes=)?0-(\d+)$/.exec(response.headers.range ?? "")?.[1];
    // `0-0` is said both of nothing and of one byte, and pieces are larger.
    return [this.#placeOf(response, place), last === undefined || last === "0" ? 0 : Number(last) + 1];
  }

  #placeOf(response: HttpResponse, asked: URL): URL {
    const place = URL.parse(response.headers.location ?? "", asked.href);
    if (place && this.#mayLeadTo(place)) return place;
    throw unusableImage(`${this.endpoint.host} names no place for the upload that can be used`);
  }

  /** Asks, as who the registry wants to see. */
  async #ask(question: Question): Promise<HttpResponse> {
    const { scopes, signal } = question;
    const authorization = await this.#auth.headerFor(this.endpoint, scopes, signal);
    const { response, isOwn } = await this.#follow(question, authorization);
    // Another host's challenge is not the registry's: credentials are not for it.
    if (response.status !== 401 || !isOwn) return response;
    const better = await this.#auth.renew(this.endpoint, response.headers["www-authenticate"], scopes, authorization, signal);
    if (better === undefined) return response;
    response.drop();
    return (await this.#follow(question, better)).response;
  }

  /** Follows redirects of what is read. `Authorization` goes to the registry's own origin alone. */
  async #follow(
    { url, headers, scopes: _, ...rest }: Question,
    authorization: string | undefined,
  ): Promise<{ response: HttpResponse; isOwn: boolean }> {
    let at = new URL(url, this.endpoint.origin);
    for (let redirects = 0; ; redirects++) {
      const isOwn = at.origin === this.endpoint.origin;
      const response = await this.#http.send({
        ...rest,
        url: at,
        headers: { ...headers, ...(isOwn && authorization !== undefined ? { authorization } : {}) },
      });
      const isRead = rest.method === "GET" || rest.method === "HEAD";
      if (!isRead || !redirectStatuses.has(response.status)) return { response, isOwn };
      response.drop();
      const next = URL.parse(response.headers.location ?? "", at.href);
      if (!next || !this.#mayLeadTo(next))
        throw unusableImage(`${this.endpoint.host} redirects to a place without TLS`, "Let the registry redirect to https only.");
      if (redirects === redirectsMax)
        throw unusableImage(`${this.endpoint.host} redirects more than ${redirectsMax} times`, "Repair the redirects of the registry.");
      at = next;
    }
  }

  #mayLeadTo({ protocol, username, password }: URL): boolean {
    if (username !== "" || password !== "") return false;
    return protocol === "https:" || (protocol === "http:" && this.endpoint.isPlain);
  }

  async #refusal(response: HttpResponse, what: string): Promise<MitosError> {
    return await asRefusal(response, this.endpoint.host, what, retryAfterMs(response, this.#clock.nowMs()));
  }

  async #retrying<T>(what: string, signal: AbortSignal | undefined, work: Parameters<typeof withRetries<T>>[0]): Promise<T> {
    try {
      return await withRetries(work, { clock: this.#clock, signal });
    } catch (error) {
      throw asImageError(error, what);
    }
  }

  #manifest(method: "GET" | "HEAD", path: string, reference: string, signal: AbortSignal | undefined): Question {
    return { method, url: `/v2/${path}/manifests/${reference}`, scopes: [pull(path)], headers: { accept: acceptedManifests }, signal };
  }

  #name(path: string, reference: string): string {
    return `${this.endpoint.host}/${path}${reference.startsWith("sha256:") ? "@" : ":"}${reference}`;
  }
}

function pull(path: string): string {
  return `repository:${path}:pull`;
}

function pushTo(path: string): string {
  return `repository:${path}:pull,push`;
}

export function digestOf(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
