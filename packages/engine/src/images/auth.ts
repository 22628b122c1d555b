import type { Clock } from "../clock.ts";
import type { Credentials, DockerConfig } from "./docker-config.ts";
import type { Endpoint } from "./endpoint.ts";
import { type HttpClient, readAll } from "./http.ts";
import { isLoopback } from "./loopback.ts";
import { refusedAccess, unreachable } from "./registry-error.ts";

/** How a registry wants to be asked, from its `WWW-Authenticate`. */
export type Challenge =
  | { readonly scheme: "basic" }
  | { readonly scheme: "bearer"; readonly realm: URL; readonly service: string | undefined };

interface Token {
  readonly header: string;
  readonly untilMs: number;
}

const tokenBytesMax = 1024 * 1024;
/** Where the service does not say, as the specification has it. */
const tokenSecondsDefault = 60;
/** Before its end a token is not used any more, so that it holds for the request. */
const tokenMarginMs = 10_000;
const keptMax = 1000;

/** Finds out what a registry wants as `Authorization`, once for each of its scopes, and gives it until it expires. */
export class Authenticator {
  readonly #http: HttpClient;
  readonly #clock: Clock;
  readonly #config: DockerConfig;
  readonly #challenges = new Map<string, Challenge>();
  readonly #tokens = new Map<string, Token>();

  constructor(http: HttpClient, clock: Clock, config: DockerConfig) {
    this.#http = http;
    this.#clock = clock;
    this.#config = config;
  }

  /** What is known without another question: undefined for a registry that has not asked for anything yet. */
  async headerFor(endpoint: Endpoint, scopes: readonly string[], signal?: AbortSignal): Promise<string | undefined> {
    const challenge = this.#challenges.get(endpoint.origin);
    return challenge && this.#answer(endpoint, challenge, scopes, signal);
  }

  /**
   * The answer to a 401.
   *
   * @param rejected - what was sent, and is not good any more
   * @returns undefined when there is nothing better to send
   */
  async renew(
    endpoint: Endpoint,
    wwwAuthenticate: string | undefined,
    scopes: readonly string[],
    rejected: string | undefined,
    signal?: AbortSignal,
  ): Promise<string | undefined> {
    const challenge = chooseChallenge(wwwAuthenticate ?? "", endpoint);
    if (!challenge) return undefined;
    makeRoom(this.#challenges);
    this.#challenges.set(endpoint.origin, challenge);
    if (rejected !== undefined) this.#tokens.delete(keyOf(endpoint, challenge, scopes));
    const header = await this.#answer(endpoint, challenge, scopes, signal);
    return header === rejected ? undefined : header;
  }

  async #answer(endpoint: Endpoint, challenge: Challenge, scopes: readonly string[], signal?: AbortSignal): Promise<string | undefined> {
    if (challenge.scheme === "basic") {
      const credentials = await this.#config.credentialsOf(endpoint.host);
      return credentials && !credentials.isIdentityToken ? basic(credentials) : undefined;
    }
    const key = keyOf(endpoint, challenge, scopes);
    const known = this.#tokens.get(key);
    if (known && known.untilMs > this.#clock.nowMs()) return known.header;
    const token = await this.#fetchToken(endpoint, challenge, scopes, signal);
    makeRoom(this.#tokens);
    this.#tokens.set(key, token);
    return token.header;
  }

  async #fetchToken(
    endpoint: Endpoint,
    { realm, service }: Challenge & { scheme: "bearer" },
    scopes: readonly string[],
    signal?: AbortSignal,
  ): Promise<Token> {
    const credentials = await this.#config.credentialsOf(endpoint.host);
    const url = new URL(realm);
    const query = new URLSearchParams();
    if (service !== undefined) query.set("service", service);
    let response: Awaited<ReturnType<HttpClient["send"]>>;
    if (credentials?.isIdentityToken) {
      query.set("grant_type", "refresh_token");
      query.set("client_id", "mitos");
      query.set("scope", scopes.join(" "));
      query.set("refresh_token", credentials.reveal().secret);
      const headers = { "content-type": "application/x-www-form-urlencoded" };
      response = await this.#http.send({ method: "POST", url, headers, body: Buffer.from(query.toString()), signal });
    } else {
      for (const scope of scopes) query.append("scope", scope);
      for (const [name, value] of query) url.searchParams.append(name, value);
      response = await this.#http.send({ method: "GET", url, headers: credentials ? { authorization: basic(credentials) } : {}, signal });
    }
    const asked = `${endpoint.host}: its token service ${realm.host}`;
    const body = await readAll(response, tokenBytesMax);
    if (response.status >= 500 || response.status === 429) throw unreachable(`${asked} answers ${response.status}`);
    if (response.status !== 200) {
      throw refusedAccess(`${asked} answers ${response.status}${credentials ? "" : " to an anonymous request"}`);
    }
    return this.#parseToken(body, asked);
  }

  #parseToken(body: Buffer | undefined, asked: string): Token {
    let answer: { token?: unknown; access_token?: unknown; expires_in?: unknown } | null = null;
    try {
      answer = JSON.parse(body?.toString("utf8") ?? "null");
    } catch {
      // Told below, without the parser's message, which quotes the answer.
    }
    const token = answer?.token || answer?.access_token;
    // A header is one line of visible characters.
    if (typeof token !== "string" || !/^[\x21-\x7e]+$/.test(token)) throw refusedAccess(`${asked} answers without a token`);
    const seconds = Number(answer?.expires_in);
    const ms = (Number.isFinite(seconds) && seconds > 0 ? seconds : tokenSecondsDefault) * 1000;
    return { header: `Bearer ${token}`, untilMs: this.#clock.nowMs() + ms - Math.min(tokenMarginMs, ms / 2) };
  }
}

/**
 * The first challenge that can be answered, tokens before passwords.
 *
 * @throws unauthorized for a token service that would get credentials in the clear, or that is no address of the registry's choosing
 */
export function chooseChallenge(header: string, endpoint: Endpoint): Challenge | undefined {
  const challenges = parseChallenges(header);
  const bearer = challenges.find(({ scheme }) => scheme === "bearer");
  if (bearer)
    return { scheme: "bearer", realm: checkRealm(bearer.parameters.get("realm"), endpoint), service: bearer.parameters.get("service") };
  return challenges.some(({ scheme }) => scheme === "basic") ? { scheme: "basic" } : undefined;
}

/** `Bearer realm="…",service="…", Basic realm="…"` */
export function parseChallenges(header: string): { readonly scheme: string; readonly parameters: ReadonlyMap<string, string> }[] {
  const token = "[!#$%&'*+.^_`|~\\w-]+";
  const item = new RegExp(`\\s*,?\\s*(?:(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))|(${token})(?=\\s|,|$))`, "gy");
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  for (const [, name, quoted, plain, scheme] of header.slice(0, 8192).matchAll(item)) {
    if (scheme !== undefined) challenges.push({ scheme: scheme.toLowerCase(), parameters: new Map() });
    else challenges.at(-1)?.parameters.set(name!.toLowerCase(), quoted?.replaceAll(/\\(.)/g, "$1") ?? plain!);
  }
  return challenges;
}

/** Only https, so that nobody on the way reads credentials and tokens; a plain registry's on its own host. */
function checkRealm(realm: string | undefined, endpoint: Endpoint): URL {
  const url = URL.parse(realm ?? "");
  if (url?.username !== "" || url.password !== "") throw refusedAccess(`${endpoint.host} names no token service`);
  const own = new URL(endpoint.origin).hostname;
  const isNear = url.hostname === own || (isLoopback(url.hostname) && isLoopback(own));
  if (url.protocol === "https:" || (url.protocol === "http:" && endpoint.isPlain && isNear)) return url;
  throw refusedAccess(`${endpoint.host} wants credentials to be sent to ${url.host} without TLS`);
}

/** The one that was noted first goes first. */
function makeRoom(kept: Map<string, unknown>): void {
  const [oldest] = kept.keys();
  if (oldest !== undefined && kept.size >= keptMax) kept.delete(oldest);
}

function keyOf(endpoint: Endpoint, challenge: Challenge, scopes: readonly string[]): string {
  const service = challenge.scheme === "bearer" ? `${challenge.realm} ${challenge.service}` : "";
  return [endpoint.host, service, ...scopes].join("\n");
}

function basic(credentials: Credentials): string {
  const { user, secret } = credentials.reveal();
  return `Basic ${Buffer.from(`${user}:${secret}`).toString("base64")}`;
}
