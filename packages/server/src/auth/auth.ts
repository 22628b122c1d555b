import type { ServerResponse } from "node:http";
import { isIPv6 } from "node:net";
import type { Duplex } from "node:stream";
import type { Actions, ApiKey, Engine, Log, SelfFork } from "@mitos/engine";
import { MitosError } from "@mitos/protocol";
import type { AnyRequest } from "../http/guard.ts";
import type { AnyResponse } from "../http/plain.ts";
import { type Access, accessOfRoute, routeAccess } from "./access.ts";
import { BuildRecords } from "./build-records.ts";
import { OwnedEngine } from "./owned-engine.ts";
import { Quotas, quotaExceeded } from "./quota.ts";
import type { Refusals } from "./refusals.ts";
import { TokenBuckets } from "./token-bucket.ts";

/** Longer than any key; what is longer is not even hashed. */
const bearerCharsMax = 256;
/** A client that presents wrong keys is answered 401 this often at once, then at this pace; in between, 429. */
const failures = { burst: 20, perSecond: 0.5 } as const;
const addressesMax = 10_000;
const keysMax = 10_000;
const streamRetryAfterMs = 1000;

/** What carries a stream: the answer of a request, or the socket of a WebSocket. */
type Carrier = AnyResponse | Duplex;

const http2Cancel = 8;

/**
 * Who a request comes from, and what they may do. The server asks once for each request, before anything else of it is looked at:
 * `authenticate`, then `authorise` as soon as it is known what is asked for. Everything behind works with `engineFor`.
 */
export class Auth {
  readonly #engine: Engine;
  readonly #log: Log;
  readonly #quotas: Quotas;
  readonly #builds = new BuildRecords();
  readonly #refusals: Pick<Refusals, "note">;
  readonly #callers = new WeakMap<AnyRequest, ApiKey>();
  readonly #failures: TokenBuckets;
  readonly #requests: TokenBuckets;
  /** By key; a key is in here only while it has some. */
  readonly #streams = new Map<string, Set<Carrier>>();

  constructor(engine: Engine, log: Log, refusals: Pick<Refusals, "note">, nowMs: () => number = Date.now) {
    this.#engine = engine;
    this.#log = log;
    this.#refusals = refusals;
    this.#quotas = new Quotas(engine);
    this.#failures = new TokenBuckets(addressesMax, nowMs);
    this.#requests = new TokenBuckets(keysMax, nowMs);
  }

  /** @returns why the request is refused: unauthorized or rate_limited */
  authenticate(request: AnyRequest): MitosError | undefined {
    if (isOpen(request)) return undefined;
    const key = this.#keyOf(request);
    if (key instanceof MitosError) return this.#refuse(request, this.#failed(request, key));
    const { requestsPerSecond } = key.limits;
    const waitMs = this.#requests.take(key.id, requestsPerSecond, 2 * requestsPerSecond);
    if (waitMs > 0) return this.#refuse(request, rateLimited(waitMs, `the key may send ${requestsPerSecond} requests a second`));
    try {
      this.#engine.keys.touch(key.id);
    } catch (error) {
      // A full disk must not lock everybody out for want of a time stamp.
      this.#log.warn({ err: error, keyId: key.id }, "the last use of a key could not be recorded");
    }
    this.#callers.set(request, key);
    return undefined;
  }

  /**
   * Takes the place of a stream as well, until its carrier closes.
   *
   * @param op - what is asked for, as the error names it
   * @returns why the request is refused: forbidden or quota_exceeded
   */
  authorise(request: AnyRequest, carrier: Carrier, access: Access, op: string): MitosError | undefined {
    if (access.scope === "open") return undefined;
    const key = this.callerOf(request);
    if (access.scope !== "any" && !key.scopes.includes(access.scope) && !key.scopes.includes("admin")) {
      const refused = new MitosError("forbidden", {
        cause: `${op} needs the scope ${access.scope}, and the key has ${key.scopes.join(", ")}`,
        remediation: `Use a key with the scope ${access.scope}.`,
        context: { op },
      });
      return this.#refuse(request, refused, op);
    }
    const full = access.stream ? this.#takeStream(key, carrier, op) : undefined;
    return full && this.#refuse(request, full, op);
  }

  /** @throws when the request was not authenticated, which is a fault of the server */
  callerOf(request: AnyRequest): ApiKey {
    const key = this.#callers.get(request);
    if (!key) throw new Error("broken invariant: a request without a caller got past authentication");
    return key;
  }

  engineFor(request: AnyRequest): Actions {
    return new OwnedEngine(this.#engine, this.callerOf(request), { quotas: this.#quotas, builds: this.#builds });
  }

  /** The key that gave a sandbox its fork budget, active or not; undefined when none did. */
  budgetKeyOf({ keyId }: SelfFork): ApiKey | undefined {
    return keyId === null ? undefined : this.#engine.keys.list().find(({ id }) => id === keyId);
  }

  /**
   * For children that a sandbox asks for itself: they count as if the key that gave the budget asked for them.
   *
   * @returns their places until they are there
   * @throws forbidden when the key is not active any more, quota_exceeded
   */
  reserveSelfFork(request: SelfFork): Disposable {
    const { source, ids, keyId } = request;
    // Made by a server without keys.
    if (keyId === null) return { [Symbol.dispose]: () => {} };
    const key = this.budgetKeyOf(request);
    const status = key ? this.#engine.keys.statusOf(key) : "unknown";
    if (!key || status !== "active") {
      throw new MitosError("forbidden", {
        cause: `the key ${keyId}, which gave sandbox ${source} its fork budget, is ${status}`,
        remediation: "Fork the sandbox from outside with a key that is active, and give the child a budget.",
        context: { op: "fork", sandbox: source },
      });
    }
    const { owner, resources } = this.#engine.get(source);
    return this.#quotas.reserve(
      "fork",
      key,
      owner,
      ids.map((id) => ({ id, resources })),
    );
  }

  /** Ends what is open with a key that was revoked, as if its client had left. */
  cutStreams(keyId: string): void {
    for (const carrier of this.#streams.get(keyId) ?? []) {
      if ("stream" in carrier && carrier.stream) carrier.stream.close(http2Cancel);
      else (carrier as ServerResponse | Duplex).destroy();
    }
  }

  #refuse(request: AnyRequest, error: MitosError, op?: string): MitosError {
    const address = request.socket?.remoteAddress ?? "";
    this.#refusals.note({ error, caller: this.#callers.get(request), address, ...(op ? { op } : {}) });
    return error;
  }

  #keyOf(request: AnyRequest): ApiKey | MitosError {
    const { authorization } = request.headers;
    if (authorization === undefined) return unauthorized("the request has no Authorization header");
    const bearer = /^Bearer +([\x21-\x7e]+) *$/i.exec(authorization)?.[1];
    if (!bearer || bearer.length > bearerCharsMax) return unauthorized("the Authorization header is not Bearer and a key");
    const { keys } = this.#engine;
    const key = keys.find(bearer);
    if (!key) return unauthorized("the server does not know this key");
    const status = keys.statusOf(key);
    return status === "active" ? key : unauthorized(`the key ${key.id} is ${status}`);
  }

  /**
   * Guessing 256 random bits is hopeless at any pace; this keeps it from costing anything. A right key is never held up: behind a reverse
   * proxy one wrong client would lock out all others.
   */
  #failed(request: AnyRequest, error: MitosError): MitosError {
    const waitMs = this.#failures.take(addressOf(request), failures.perSecond, failures.burst);
    return waitMs > 0 ? rateLimited(waitMs, "too many requests from this address had no valid key") : error;
  }

  #takeStream(key: ApiKey, carrier: Carrier, op: string): MitosError | undefined {
    const { maxStreams } = key.limits;
    const open = this.#streams.get(key.id) ?? new Set();
    if (open.size >= maxStreams) {
      const { detail } = quotaExceeded(op, "streams", maxStreams, `the key has ${open.size} streams open, and may have ${maxStreams}`);
      return new MitosError("quota_exceeded", { ...detail, retryAfterMs: streamRetryAfterMs });
    }
    this.#streams.set(key.id, open.add(carrier));
    carrier.once("close", () => {
      open.delete(carrier);
      if (open.size === 0 && this.#streams.get(key.id) === open) this.#streams.delete(key.id);
    });
    return undefined;
  }
}

/** Known before the routes are: everything else needs a key, also what does not exist. */
function isOpen({ method = "", url = "" }: AnyRequest): boolean {
  const path = url.split("?", 1)[0]!;
  const name = `${method === "HEAD" ? "GET" : method} ${path}`;
  return Object.hasOwn(routeAccess, name) && accessOfRoute(method, path).scope === "open";
}

/** One subscriber of IPv6 has a whole /64. */
function addressOf(request: AnyRequest): string {
  const address = request.socket?.remoteAddress ?? "";
  if (!isIPv6(address) || address.startsWith("::ffff:")) return address;
  const [left, right] = address
    .split("%")[0]!
    .split("::")
    .map((half) => half.split(":"));
  return [...left!, ...Array<string>(right ? 8 - left!.length - right.length : 0).fill("0"), ...(right ?? [])].slice(0, 4).join(":");
}

function unauthorized(cause: string): MitosError {
  return new MitosError("unauthorized", { cause });
}

function rateLimited(waitMs: number, cause: string): MitosError {
  return new MitosError("rate_limited", { cause, context: { retry_after_ms: waitMs }, retryAfterMs: waitMs });
}
