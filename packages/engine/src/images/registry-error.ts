import { MitosError } from "@mitos/protocol";
import { ConnectionLost, ForbiddenAddress, type HttpResponse, readAll } from "./http.ts";

/** What a registry answers and a connection does, as errors of ours. Nothing that a registry writes is passed on but codes that we know. */

/** The codes of the OCI distribution specification. */
const knownCodes = new Set([
  "BLOB_UNKNOWN",
  "BLOB_UPLOAD_INVALID",
  "BLOB_UPLOAD_UNKNOWN",
  "DENIED",
  "DIGEST_INVALID",
  "MANIFEST_BLOB_UNKNOWN",
  "MANIFEST_INVALID",
  "MANIFEST_UNKNOWN",
  "NAME_INVALID",
  "NAME_UNKNOWN",
  "SIZE_INVALID",
  "TOOMANYREQUESTS",
  "UNAUTHORIZED",
  "UNSUPPORTED",
]);
const errorBytesMax = 64 * 1024;

/**
 * A refusal. Reads or drops the body.
 *
 * @param what - the reference or repository, as in `docker.io/library/python:3`
 * @param afterMs - when the registry wants to be asked again
 */
export async function asRefusal(response: HttpResponse, host: string, what: string, afterMs: number | undefined): Promise<MitosError> {
  const { status } = response;
  const codes = await codesOf(response);
  const cause = `${what}: ${host} answers ${status}${codes.length > 0 ? ` ${codes.join(", ")}` : ""}`;
  if (status === 401 || status === 403) return refusedAccess(cause);
  if (status === 404) return unknownImage(cause);
  if (status === 429) {
    return new MitosError("unavailable", {
      message: "the registry lets nobody in so often",
      cause,
      remediation: "Wait and try again, log in to the registry (docker login), or name a mirror with --mirror.",
      retryAfterMs: afterMs,
    });
  }
  if (status >= 500) return unreachable(cause, afterMs);
  return new MitosError("build_failed", {
    message: "the registry does not accept the request",
    cause,
    remediation: "Check the reference, and that the host is a registry that speaks the OCI distribution API.",
  });
}

export function refusedAccess(cause: string): MitosError {
  return new MitosError("unauthorized", {
    message: "the registry gives no access",
    cause,
    remediation:
      "Check that the repository exists (many registries say this of one that does not), and log in for the user of the server: docker login.",
  });
}

export function unknownImage(cause: string): MitosError {
  return new MitosError("not_found", {
    message: "the registry has no such image",
    cause,
    remediation: "Check the reference's spelling and its tag.",
  });
}

export function unreachable(cause: string, retryAfterMs?: number): MitosError {
  return new MitosError("unavailable", {
    message: "the registry cannot be reached",
    cause,
    remediation: "Check the host's name, its network and proxy, and the registry; then try again. A download goes on where it stopped.",
    retryAfterMs,
  });
}

/** What a registry has sent is no image that can be used here. */
export function unusableImage(cause: string, remediation?: string): MitosError {
  return new MitosError("build_failed", {
    message: "the image cannot be used",
    cause,
    remediation: remediation ?? "Pull it with another tool to see whether it is damaged; push it again, or use another one.",
  });
}

export function canceled(): MitosError {
  return new MitosError("canceled");
}

/** A failure on the way to or from a registry; others as they are. */
export function asImageError(error: unknown, what: string): unknown {
  if (error instanceof ConnectionLost) return unreachable(`${what}: ${error.message}`);
  if (error instanceof ForbiddenAddress) {
    return unusableImage(
      `${what}: ${error.message}`,
      "Name a registry that is neither on a link-local address nor on that of a cloud's own services.",
    );
  }
  if (error instanceof DOMException && (error.name === "AbortError" || error.name === "TimeoutError")) return canceled();
  return error;
}

/** Of a `Retry-After` in seconds or as a date. */
export function retryAfterMs({ headers }: HttpResponse, nowMs: number): number | undefined {
  const text = headers["retry-after"];
  if (text === undefined) return undefined;
  const ms = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs;
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined;
}

async function codesOf(response: HttpResponse): Promise<string[]> {
  try {
    const body = await readAll(response, errorBytesMax);
    const { errors } = JSON.parse(body?.toString("utf8") ?? "{}") as { errors?: unknown };
    if (!Array.isArray(errors)) return [];
    return [...new Set(errors.map((error: { code?: unknown } | null) => String(error?.code)))].filter((code) => knownCodes.has(code));
  } catch {
    return [];
  }
}
