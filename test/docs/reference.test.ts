import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterEach, expect, it } from "vitest";
import { root } from "./markdown.ts";

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

/** Runs the generator on a package with these sources. @returns page → text */
function generate(exports: Record<string, string>, sources: Record<string, string>): Record<string, string> {
  mkdirSync(path.join(root, ".cache/docs"), { recursive: true });
  const folder = mkdtempSync(path.join(root, ".cache/docs/package-"));
  folders.push(folder);
  writeFileSync(path.join(folder, "package.json"), JSON.stringify({ name: "@example/kit", type: "module", exports }));
  for (const [name, text] of Object.entries(sources)) writeFileSync(path.join(folder, name), text);
  const out = path.join(folder, "pages");
  const generator = path.join(root, "scripts/lib/reference-pages.ts");
  execFileSync(process.execPath, [generator, folder, out], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  return Object.fromEntries(readdirSync(out).map((name) => [name, readFileSync(path.join(out, name), "utf8")]));
}

it("every subpath has a page with its exports, their signatures and docstrings, and links to the types they name", () => {
  const pages = generate(
    { ".": "./index.ts", "./extra": "./extra.ts" },
    {
      "index.ts": `export { Box } from "./box.ts";\n`,
      "box.ts": `/** Holds one thing. */
export class Box {
  readonly #secret = 1;
  /** In litres. */
  readonly size: number = this.#secret;
  /**
   * Puts it in.
   *
   * @param thing - not a box
   * @throws too_large
   */
  put(thing: string): void {
    void thing;
  }
}
`,
      "extra.ts": `/** Things to do with boxes. */

import { Box } from "./box.ts";

/** Makes an empty one. */
export function makeBox(count = 1): Box[] {
  return Array.from({ length: count }, () => new Box());
}

/** Says much. */
export function everything() {
  return { ${Array.from({ length: 60 }, (_, index) => `member${index}: new Box()`).join(", ")} };
}
`,
    },
  );
  expect(Object.keys(pages).sort()).toEqual(["README.md", "kit-extra.md", "kit.md"]);
  expect(pages["kit.md"]).toContain("### `Box`\n\nHolds one thing.\n");
  expect(pages["kit.md"]).toContain("class Box {\n    /** In litres. */\n    readonly size: number;\n}");
  expect(pages["kit.md"]).toContain(
    "#### `Box.put`\n\nPuts it in.\n\n- `thing`: not a box\n- Throws: too_large\n\n```ts\nput(thing: string): void;",
  );
  expect(pages["kit.md"]).not.toContain("secret");
  expect(pages["kit-extra.md"]).toContain("# `@example/kit/extra`\n");
  expect(pages["kit-extra.md"]).toContain("Things to do with boxes.\n\n## Functions\n\n### `everything`\n\nSays much.\n");
  expect(pages["kit-extra.md"]).toContain("function makeBox(count?: number): Box[];\n```\n\nTypes: [`Box`](kit.md#box)");
  expect(pages["kit-extra.md"]).toContain("### `makeBox`\n\nMakes an empty one.\n");
  // What is inferred is cut where it says nothing more.
  expect(pages["kit-extra.md"]).toContain("```ts\nfunction everything(): …;\n```");
  expect(pages["README.md"]).toContain("| [`@example/kit/extra`](kit-extra.md) | `everything`, `makeBox` |");
});

it("an export without a docstring is named, and nothing is written", () => {
  const sources = { "index.ts": "/** Said. */\nexport const said = 1;\nexport interface Unsaid {\n  a: string;\n}\n" };
  expect(() => generate({ ".": "./index.ts" }, sources)).toThrow(/@example\/kit exports Unsaid without a docstring/);
});
