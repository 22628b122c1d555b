import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";

const root = path.resolve(import.meta.dirname, "../..");

/** What each package may import of the others (design: dependencies point one way). */
const allowed: Record<string, readonly string[]> = {
  protocol: [],
  engine: ["protocol"],
  server: ["engine", "protocol"],
  sdk: ["protocol"],
  // `server` and `engine` lazily, for `serve`, `doctor` and `quickstart` only.
  cli: ["sdk", "protocol", "server", "engine"],
  mcp: ["sdk", "protocol"],
};

function sources(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|js|mjs)$/.test(entry.name) && !/\/(node_modules|dist)(\/|$)/.test(entry.parentPath))
    .map((entry) => path.join(entry.parentPath, entry.name));
}

function importsOf(file: string): { line: number; specifier: string; dynamic: boolean }[] {
  return readFileSync(file, "utf8")
    .split("\n")
    .flatMap((text, index) => {
      const match = /(?:\bfrom\s+|^import\s+|\bimport\()["']([^"']+)["']/.exec(text);
      return match ? [{ line: index + 1, specifier: match[1]!, dynamic: text.includes("import(") }] : [];
    });
}

it("dependencies between packages point one way", () => {
  const offences = readdirSync(path.join(root, "packages")).flatMap((name) =>
    sources(path.join(root, "packages", name)).flatMap((file) =>
      importsOf(file).flatMap(({ line, specifier, dynamic }) => {
        const where = `${path.relative(root, file)}:${line}`;
        const target = /^@mitos\/([a-z]+)/.exec(specifier)?.[1];
        if (target && target !== name && !allowed[name]?.includes(target)) {
          return [`${where} imports ${specifier}; ${name} may import ${allowed[name]?.join(", ") || "no other package"}`];
        }
        if (
          name === "cli" &&
          (target === "server" || target === "engine") &&
          !dynamic &&
          !file.endsWith(".test.ts") &&
          !isTypeImport(file, line)
        ) {
          return [`${where} imports ${specifier} at once; the CLI loads it with import() where it is needed`];
        }
        if (specifier.startsWith(".") && !path.resolve(path.dirname(file), specifier).startsWith(path.join(root, "packages", name))) {
          return [`${where} reaches into another package by path: ${specifier}`];
        }
        return [];
      }),
    ),
  );
  expect(offences).toEqual([]);
});

function isTypeImport(file: string, line: number): boolean {
  return /^import type\b|typeof import\(/.test(readFileSync(file, "utf8").split("\n")[line - 1]!);
}

it("the SDK takes only the dependency-free entry of protocol, and has no runtime dependency; adapters load their framework when it is asked for", () => {
  const integrations = path.join(root, "packages/sdk/src/integrations/");
  const offences = sources(path.join(root, "packages/sdk/src")).flatMap((file) =>
    importsOf(file)
      .filter(({ specifier }) => !specifier.startsWith(".") && specifier !== "@mitos/protocol" && !file.endsWith(".test.ts"))
      .filter(({ line, dynamic }) => !(file.startsWith(integrations) && (dynamic || isTypeImport(file, line))))
      .filter(({ specifier }) => !specifier.startsWith("node:"))
      .map(({ line, specifier }) => `${path.relative(root, file)}:${line} imports ${specifier}`),
  );
  expect(offences).toEqual([]);
});

it("examples import the SDK and Node, as their readers would", () => {
  const offences = sources(path.join(root, "examples")).flatMap((file) =>
    importsOf(file)
      .filter(({ specifier }) => specifier !== "@mitos/sdk" && !specifier.startsWith("@mitos/sdk/") && !specifier.startsWith("node:"))
      .map(({ line, specifier }) => `${path.relative(root, file)}:${line} imports ${specifier}`),
  );
  expect(offences).toEqual([]);
});

it("every source file is imported by something, or is an entry", () => {
  const all = readdirSync(path.join(root, "packages")).flatMap((name) => sources(path.join(root, "packages", name)));
  const imported = new Set(
    [...all, ...sources(path.join(root, "test"))].flatMap((file) =>
      importsOf(file)
        .filter(({ specifier }) => specifier.startsWith("."))
        .map(({ specifier }) => path.resolve(path.dirname(file), specifier)),
    ),
  );
  const entries = new Set(
    readdirSync(path.join(root, "packages")).flatMap((name) => {
      const manifest = JSON.parse(readFileSync(path.join(root, "packages", name, "package.json"), "utf8"));
      return [...Object.values(manifest.exports ?? {}), ...Object.values(manifest.bin ?? {})].map((file) =>
        path.resolve(root, "packages", name, String(file)),
      );
    }),
  );
  const orphans = all.filter(
    (file) => !imported.has(file) && !entries.has(file) && !/\.(test|bench|d)\.ts$/.test(file) && !file.includes("/gen/"),
  );
  expect(orphans.map((file) => path.relative(root, file))).toEqual([]);
});
