import { MitosError } from "./errors.ts";

declare const brand: unique symbol;
type Branded<Name> = string & { readonly [brand]: Name };

/** 1 to 64 characters: a letter or digit, then letters, digits, `_` and `-`. */
export type SandboxId = Branded<"SandboxId">;
/** The same rule as for sandboxes. */
export type TemplateId = Branded<"TemplateId">;

const idPattern = /^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$/;

export function isId(value: unknown): value is string {
  return typeof value === "string" && idPattern.test(value);
}

/** @throws invalid_input */
export function toSandboxId(value: unknown, field = "id"): SandboxId {
  if (!isId(value)) throw invalidId(field);
  return value as SandboxId;
}

/** @throws invalid_input */
export function toTemplateId(value: unknown, field = "template"): TemplateId {
  if (!isId(value)) throw invalidId(field);
  return value as TemplateId;
}

function invalidId(field: string): MitosError {
  return new MitosError("invalid_input", { cause: `${field} must match ${idPattern.source}` });
}

/** `sandbox-` and 8 hexadecimal digits, as the published clients make them. */
export function newSandboxId(): SandboxId {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  return `sandbox-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}` as SandboxId;
}
