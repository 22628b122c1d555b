import type { Language } from "./actions.ts";
import type { Driver } from "./driver.ts";

/** Names that mean the driver's own root, and which interpreter their sandboxes wake with. */
const languages: Readonly<Record<string, Language | null>> = { base: null, node: "javascript", python: "python" };

export function isHostName(name: string): boolean {
  return Object.hasOwn(languages, name);
}

/** What templates without an image are made of, for whoever reads messages. */
export function ownRootOf(driver: Pick<Driver, "name">): string {
  return driver.name === "microvm" ? "the Debian that set-up has made for virtual machines" : "the host's own files";
}

/** Whatever is not known otherwise wakes with a Python kernel. */
export function hostLanguage(name: string): Language | null {
  return isHostName(name) ? (languages[name] ?? null) : "python";
}
