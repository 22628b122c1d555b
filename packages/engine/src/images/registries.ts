import { MitosError } from "@mitos/protocol";
import type { ImageOptions, Log } from "../actions.ts";
import type { Clock } from "../clock.ts";
import { isDiskFull } from "../storage-error.ts";
import { Authenticator } from "./auth.ts";
import { DockerConfig } from "./docker-config.ts";
import { endpointOf } from "./endpoint.ts";
import { HttpClient } from "./http.ts";
import { checkHost, dockerHub } from "./reference.ts";
import { Registry } from "./registry.ts";

/** It has had its attempts, and an image has many parts to ask for. */
const leftOutMs = 60_000;

/** Every registry that is spoken to, and which ones stand in for which. */
export class Registries {
  /** Of references that name none. */
  readonly home: string;
  readonly #http: HttpClient;
  readonly #auth: Authenticator;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #insecure: ReadonlySet<string>;
  readonly #mirrors: ReadonlyMap<string, readonly string[]>;
  readonly #leftOutUntilMs = new Map<string, number>();

  /** @throws invalid_input */
  constructor({ registry, mirrors = {}, insecureRegistries = [], dockerConfig }: ImageOptions, clock: Clock, log: Log) {
    this.home = checkHost(registry ?? dockerHub, "registry");
    this.#insecure = new Set(insecureRegistries.map((host) => checkHost(host, "insecure registry")));
    this.#mirrors = new Map(
      Object.entries(mirrors).map(([host, hosts]) => [
        checkHost(host, "mirror"),
        hosts.map((mirror) => checkHost(mirror, `mirror of ${host}`)),
      ]),
    );
    this.#clock = clock;
    this.#log = log;
    this.#http = new HttpClient(clock);
    this.#auth = new Authenticator(this.#http, clock, new DockerConfig(dockerConfig));
  }

  get(host: string): Registry {
    return new Registry(endpointOf(host, this.#insecure), this.#http, this.#auth, this.#clock);
  }

  /**
   * Asks the mirrors of a registry in order, then itself. What a mirror answers instead of what was asked for, whatever it is, leads to the
   * next one: images must not be out of reach because there is a mirror. One that cannot be reached is left out for a while.
   *
   * @throws what the registry itself answers; canceled and a full disk at once
   */
  async fromFirst<T>(host: string, ask: (registry: Registry) => Promise<T>): Promise<T> {
    for (const mirror of this.#mirrors.get(host) ?? []) {
      if ((this.#leftOutUntilMs.get(mirror) ?? 0) > this.#clock.nowMs()) continue;
      try {
        return await ask(this.get(mirror));
      } catch (error) {
        if (!(error instanceof MitosError) || error.code === "canceled" || isDiskFull(error)) throw error;
        if (error.code === "unavailable") this.#leftOutUntilMs.set(mirror, this.#clock.nowMs() + leftOutMs);
        this.#log.info({ registry: host, mirror, code: error.code, cause: error.detail.cause }, "a mirror is passed over");
      }
    }
    return await ask(this.get(host));
  }
}
