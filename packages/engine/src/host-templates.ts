import type { Language } from "./actions.ts";

/** Names that mean the host's files, and which interpreter their sandboxes wake with. */
const languages: Readonly<Record<string, Language | null>> = { base: null, node: "javascript", python: "python" };

export function isHostName(name: string): boolean {
  return Object.hasOwn(languages, name);
}

/** Whatever is not known otherwise wakes with a Python kernel. */
export function hostLanguage(name: string): Language | null {
  return isHostName(name) ? (languages[name] ?? null) : "python";
}
