import { MitosError } from "./errors.ts";

declare const brand: unique symbol;
type Branded<Name> = string & { readonly [brand]: Name };

/** 1 to 64 characters: a letter or digit, then letters, digits, `_` and `-`. */
export type SandboxId = Branded<"SandboxId">;
/**
 * A name (the same rule as for sandboxes) or an image reference, at most 255 characters:
 *
 * ```
 * reference = [host "/"] path [":" tag] ["@" digest]      with a host, a tag or a digest, or several of them
 * host      = "localhost" or a name with a dot, [":" port]; or any name with a port
 * path      = component *("/" component)
 * component = lower-case letters and digits, joined by ".", "_", "__" or hyphens
 * tag       = 1 to 128 letters, digits, "_", "." and "-", not beginning with "." or "-"
 * digest    = "sha256:" and 64 lower-case hexadecimal digits
 * ```
 *
 * So `python:3.12` and `registry.example/team/tool` are references, and `a/b` is neither. `live:…` is kept for the handles of live forks.
 */
export type TemplateId = Branded<"TemplateId">;

const idPattern = /^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$/;

const imageReferenceLengthMax = 255;
const label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
const host = `(?:localhost|${label}(?:\\.${label})+|${label}(?=:\\d))(?::\\d{1,5})?`;
const component = "[a-z0-9]+(?:(?:\\.|__?|-+)[a-z0-9]+)*";
const referencePattern = new RegExp(
  `^(?:(?<host>${host})/)?(?<path>${component}(?:/${component})*)(?::(?<tag>\\w[\\w.-]{0,127}))?(?:@(?<digest>sha256:[0-9a-f]{64}))?$`,
);
/** Not a repository: `live:<sandbox id>` names a running sandbox. */
const reservedPath = "live";
/**
 * Of the handle of a running sandbox. Published 0.1.x clients fork a sandbox by creating another one from the `template_id` that its creation
 * answered. Answering with this handle makes that a fork of the live sandbox. No template can have such a name, so an exact name always wins.
 */
export const livePrefix = `${reservedPath}:`;

export function isId(value: unknown): value is string {
  return typeof value === "string" && idPattern.test(value);
}

const hostPattern = new RegExp(`^${host}$`);

/** The parts of a reference, as they are written. */
export interface ImageReferenceParts {
  readonly host: string | undefined;
  readonly path: string;
  readonly tag: string | undefined;
  readonly digest: string | undefined;
}

/** Of a reference, or of a path alone (`python`, `team/tool`); undefined for anything else. */
export function splitImageReference(text: string): ImageReferenceParts | undefined {
  if (text.length > imageReferenceLengthMax) return undefined;
  const { host: registry, path, tag, digest } = referencePattern.exec(text)?.groups ?? {};
  return path === undefined || path === reservedPath ? undefined : { host: registry, path, tag, digest };
}

/** What can stand as host in a reference. */
export function isRegistryHost(text: string): boolean {
  return hostPattern.test(text);
}

/** A template's id that names an image of a registry, rather than one that this server knows by name. */
export function isImageReference(value: unknown): value is string {
  if (typeof value !== "string") return false;
  const parts = splitImageReference(value);
  return parts !== undefined && (parts.host ?? parts.tag ?? parts.digest) !== undefined;
}

export function isTemplateId(value: unknown): value is string {
  return isId(value) || isImageReference(value);
}

/** @throws invalid_input */
export function toSandboxId(value: unknown, field = "id"): SandboxId {
  if (!isId(value)) throw new MitosError("invalid_input", { cause: `${field} must match ${idPattern.source}` });
  return value as SandboxId;
}

/** @throws invalid_input */
export function toTemplateId(value: unknown, field = "template"): TemplateId {
  if (!isTemplateId(value))
    throw new MitosError("invalid_input", { cause: `${field} must match ${idPattern.source}, or be an image reference` });
  return value as TemplateId;
}

/** `context-` and 16 hexadecimal digits: no language has such a name. */
export function newContextId(): string {
  return `context-${randomHex(8)}`;
}

/** `sandbox-` and 8 hexadecimal digits, as the published clients make them. */
export function newSandboxId(): SandboxId {
  return `sandbox-${randomHex(4)}` as SandboxId;
}

function randomHex(byteCount: number): string {
  const bytes = crypto.getRandomValues(new Uint8Array(byteCount));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
