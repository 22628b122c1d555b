import { isLoopback } from "./loopback.ts";
import { dockerHub } from "./reference.ts";

/** How a registry is reached. */
export interface Endpoint {
  /** As in references, and what credentials are kept under. */
  readonly host: string;
  /** Scheme, host and port. */
  readonly origin: string;
  /** In plain HTTP: on a loopback address, or because the operator said so. */
  readonly isPlain: boolean;
}

/** @param insecure - hosts, with their port, that the operator has listed */
export function endpointOf(host: string, insecure: ReadonlySet<string>): Endpoint {
  const isPlain = insecure.has(host) || isLoopback(new URL(`http://${host}`).hostname);
  const name = host === dockerHub ? "registry-1.docker.io" : host;
  return { host, origin: `${isPlain ? "http" : "https"}://${name}`, isPlain };
}
