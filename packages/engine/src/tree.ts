import type { SandboxTree } from "./actions.ts";
import type { Core } from "./core.ts";
import type { Entry } from "./sandboxes.ts";

/** The lineage below a sandbox: what lives, and what has ended but still has something living below it. */
export function tree(core: Core, entry: Entry): SandboxTree {
  return {
    sandbox: core.sandboxes.view(entry),
    children: core.sandboxes
      .childrenOf(entry)
      .map((child) => tree(core, child))
      .filter((child) => child.sandbox.state !== "ended" || child.children.length > 0),
  };
}

/** Everything below a sandbox that has not ended, also below ended ones. */
export function livingDescendants(core: Core, entry: Entry): Entry[] {
  return core.sandboxes.childrenOf(entry).flatMap((child) => {
    const below = livingDescendants(core, child);
    return child.record.state === "ended" ? below : [child, ...below];
  });
}
