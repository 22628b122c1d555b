import path from "node:path";

/** Where a copy comes from or goes to. */
export type Place =
  | { readonly kind: "stream" }
  /** As it was written: a `/` at its end says that it is a folder. */
  | { readonly kind: "local"; readonly path: string }
  /** Absolute, with the `/` at its end if it was written. */
  | { readonly kind: "sandbox"; readonly sandbox: string; readonly path: string };

const workspace = "/workspace";

/** `-`, `<id>:<path>`, or a local path: one with a colon has a `/` in front of it. */
export function parsePlace(text: string): Place {
  if (text === "-") return { kind: "stream" };
  const match = /^([A-Za-z0-9][A-Za-z0-9_-]{0,63}):(.*)$/s.exec(text);
  if (!match) return { kind: "local", path: text };
  const [, sandbox, rest] = match as unknown as [string, string, string];
  const absolute = path.posix.resolve(workspace, rest);
  const isFolder = rest === "" || rest.endsWith("/");
  return { kind: "sandbox", sandbox, path: isFolder && absolute !== "/" ? `${absolute}/` : absolute };
}

export function isFolderPath(place: string): boolean {
  return place.endsWith("/");
}
