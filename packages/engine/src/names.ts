import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { NameMeaning } from "./actions.ts";
import type { Core } from "./core.ts";
import { isHostName, ownRootOf } from "./host-templates.ts";

/** Which thing a name means here: the first of these that exists. Asks the registry only where the operator has configured one. */
export async function meaningOf(core: Core, name: string, signal?: AbortSignal): Promise<NameMeaning> {
  const { built, building } = core.templates.get(name as TemplateId) ?? {};
  if (built || building) return { name, means: "template", reference: "" };
  return meaningBeside(core, name, signal);
}

/** The same, templates of this server left aside. */
export async function meaningBeside(core: Core, name: string, signal?: AbortSignal): Promise<NameMeaning> {
  if (isImageReference(name)) return { name, means: "image", reference: core.images.normalize(name) };
  if (core.images.hasOwnRegistry && isRepositoryName(name) && (await existsInRegistry(core, name, signal))) {
    return { name, means: "image", reference: core.images.normalize(`${name}:latest`) };
  }
  return { name, means: isHostName(name) ? "host" : "nothing", reference: "" };
}

/** @throws not_found */
export function nothingOfThatName({ driver }: Core, name: string): MitosError {
  return new MitosError("not_found", {
    cause: `${name} is no template of this server and no image`,
    remediation: `Write an image with its tag (python:3.12-slim), name a template that exists, or use python, node or base: ${ownRootOf(driver)}.`,
  });
}

/** What can be a repository: names of templates may also have capitals. */
function isRepositoryName(name: string): boolean {
  return isImageReference(`${name}:latest`);
}

async function existsInRegistry(core: Core, name: string, signal: AbortSignal | undefined): Promise<boolean> {
  try {
    await core.images.resolve(`${name}:latest`, signal ? { signal } : {});
    return true;
  } catch (error) {
    // A registry that does not say which names it lacks may refuse them instead.
    if (error instanceof MitosError && (error.code === "not_found" || error.code === "unauthorized")) return false;
    throw error;
  }
}
