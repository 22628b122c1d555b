import { createHash } from "node:crypto";
import type { BuildStep } from "../actions.ts";
import type { ImageConfig } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";

/**
 * The names under which results of build steps are stored: each is the hash of all that came before it and of the step itself, so that an
 * unchanged beginning of a build is found again, and nothing after a change is.
 */

/** What the first step builds on: an image, by its manifest, or the root and configuration of another template. */
export type ChainBase =
  | { readonly manifest: Digest }
  | { readonly layers: readonly { readonly id: Digest }[]; readonly config: ImageConfig };

export function baseKey(base: ChainBase): Digest {
  const content = "manifest" in base ? base.manifest : canonical([base.layers.map(({ id }) => id), base.config]);
  return digestOf(["base", content]);
}

/**
 * Where the chain of an organisation's build begins. Results are found within it only: what a step makes is more than its command says, such as
 * the keys that a package generates when it is installed.
 *
 * @param organisation - undefined = on a server without keys
 */
export function keyWithin(base: Digest, organisation: string | undefined): Digest {
  return organisation === undefined ? base : digestOf(["organisation", base, organisation]);
}

export function stepKey(previous: Digest, step: BuildStep): Digest {
  const hash = createHash("sha256")
    .update(Buffer.from(previous.slice("sha256:".length), "hex"))
    .update("\0");
  return `sha256:${hash.update(fingerprint(step).join("\0")).digest("hex")}`;
}

/** No part but the last can hold a NUL: it is refused where requests are checked. */
function fingerprint(step: BuildStep): readonly string[] {
  switch (step.kind) {
    case "run":
      return ["run", step.command];
    case "env":
      return ["env", step.name, step.value];
    case "workdir":
      return ["workdir", step.path];
    case "user":
      return ["user", step.user];
    case "copy":
      return ["copy", step.context, step.dest];
  }
}

function digestOf(parts: readonly string[]): Digest {
  return `sha256:${createHash("sha256").update(parts.join("\0")).digest("hex")}`;
}

/** The same text for the same value, in whatever order its keys came. */
export function canonical(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) =>
    part !== null && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}
