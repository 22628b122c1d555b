import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { BuildOptions, ImageSummary, Language, TemplateRequest, TemplateSource } from "../actions.ts";
import type { Core } from "../core.ts";
import { hostLanguage, isHostName, ownRootOf } from "../host-templates.ts";
import type { Image } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";
import { meaningBeside, nothingOfThatName } from "../names.ts";
import type { TemplateRoot } from "../store/templates.ts";
import { baseKey } from "./chain.ts";
import { checkImageConfig, emptyConfig } from "./config.ts";
import { type Tell, untimed } from "./events.ts";

/** What the root of a template is made of before its own steps. */
export type Base =
  | { readonly kind: "host"; readonly name: string; readonly warnings: readonly string[] }
  | { readonly kind: "image"; readonly reference: string }
  | { readonly kind: "template"; readonly id: TemplateId };

/**
 * Which thing a request means by its image, or without one by its id. The template that is being made is not meant by its own name.
 *
 * @throws not_found
 */
export async function findBase(core: Core, { id, image }: TemplateRequest, signal: AbortSignal): Promise<Base> {
  // It runs nothing, so that it does not matter of what.
  if (core.driver.name === "mock") return { kind: "host", name: image ?? id, warnings: [] };
  if (image === undefined) {
    if (isImageReference(id)) return { kind: "image", reference: core.images.normalize(id) };
    const warnings = isHostName(id)
      ? []
      : [`${id} names no image: it is made of ${ownRootOf(core.driver)}. Say image to have another root.`];
    return { kind: "host", name: id, warnings };
  }
  // A reference is an image, whatever template somebody has made under it.
  if (image !== id && !isImageReference(image) && core.templates.has(image as TemplateId))
    return { kind: "template", id: image as TemplateId };
  const { means, reference } = await meaningBeside(core, image, signal);
  if (means === "host") return { kind: "host", name: image, warnings: [] };
  if (means === "image") return { kind: "image", reference };
  throw nothingOfThatName(core, image);
}

/**
 * The root of a base, with the layers of an image downloaded and unpacked.
 *
 * @param options.hold - is told which those are before the first of them comes
 * @throws not_found, unauthorized, unavailable, build_failed
 */
export async function takeBase(
  core: Core,
  base: Base,
  { pull, signal, tell, hold }: { pull: boolean; signal: AbortSignal; tell: Tell; hold: (layers: readonly Digest[]) => void },
): Promise<TemplateRoot> {
  switch (base.kind) {
    case "host":
      return hostRoot(base.name);
    case "template":
      return templateRoot(core, base.id);
    case "image": {
      tell({ kind: "phase", phase: "pull", detail: base.reference });
      const options = { pull, hold, signal, onEvent: (event: Parameters<NonNullable<BuildOptions["onEvent"]>>[0]) => tell(untimed(event)) };
      const image = await core.images.pull(base.reference, options);
      return imageRoot(image);
    }
  }
}

/** The key that `takeBase` would answer with now, without a download. */
export async function askBaseKey(core: Core, base: Base, signal: AbortSignal): Promise<TemplateRoot["baseKey"]> {
  if (base.kind === "host") return null;
  if (base.kind === "template") return templateRoot(core, base.id).baseKey;
  return baseKey({ manifest: (await core.images.resolve(base.reference, { signal })).digest });
}

export function hostRoot(name: string): TemplateRoot {
  const source: TemplateSource = { kind: "host", reference: "", digest: null, layers: 0, rootBytes: 0 };
  return { source, baseKey: null, layers: null, config: emptyConfig, language: hostLanguage(name) };
}

function imageRoot({ reference, digest, config, layers }: Image): TemplateRoot {
  return {
    source: { kind: "image", reference, digest, layers: layers.length, rootBytes: 0 },
    baseKey: baseKey({ manifest: digest }),
    layers,
    config: checkImageConfig(config, reference),
    language: languageOf(reference),
  };
}

/** Its layers and configuration; what runs in its memory stays its own. */
function templateRoot(core: Core, id: TemplateId): TemplateRoot {
  const root = core.templates.get(id)?.built?.record.root;
  if (!root) {
    throw new MitosError("conflict", {
      cause: `template ${id}, which this one is made of, is not ready`,
      remediation: `Wait until ${id} is built, then create this one again.`,
      retryAfterMs: 1000,
    });
  }
  return root.layers ? { ...root, baseKey: baseKey({ layers: root.layers, config: root.config }) } : root;
}

/** By the name of its repository: images of Node bring Python along for their build tools. */
function languageOf(reference: string): Language {
  const repository =
    reference
      .split("@")[0]
      ?.replace(/:[\w.-]+$/, "")
      .split("/")
      .at(-1) ?? "";
  return /^node(js)?\b/.test(repository) ? "javascript" : "python";
}

/** Downloads and unpacks an image ahead of its first use. @throws invalid_input, not_found, unauthorized, unavailable, build_failed, canceled */
export async function pullImage(core: Core, reference: string, { signal, onEvent, pull }: BuildOptions = {}): Promise<ImageSummary> {
  const name = core.images.normalize(reference);
  using scope = new DisposableStack();
  const image = await core.images.pull(name, {
    pull: pull ?? false,
    hold: (layers) => scope.use(core.layers.hold(layers)),
    ...(signal ? { signal } : {}),
    ...(onEvent ? { onEvent } : {}),
  });
  core.collector.soon();
  const found = core.images.list().find((each) => each.reference === image.reference && each.digest === image.digest);
  if (!found) throw new MitosError("conflict", { cause: `${name} was removed while it was downloaded`, remediation: "Download it again." });
  return found;
}
