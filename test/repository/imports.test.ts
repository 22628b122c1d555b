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

interface Import {
  readonly line: number;
  readonly specifier: string;
  /** Loaded when it is reached, or only its types are used: nothing of it is loaded with the file. */
  readonly atOnce: boolean;
}

/** Of one line or several. */
function importsOf(file: string): Import[] {
  const text = readFileSync(file, "utf8");
  const statements = /^(?:import|export)(?<type> type)?\b[^;"'`]*?from\s+["'](?<from>[^"']+)["']|^import ["'](?<bare>[^"']+)["']/gm;
  const expressions = /\bimport\(\s*["'](?<lazy>[^"']+)["']/g;
  return [...text.matchAll(statements), ...text.matchAll(expressions)].map(({ index, groups }) => ({
    line: text.slice(0, index).split("\n").length,
    specifier: groups!.from ?? groups!.bare ?? groups!.lazy!,
    atOnce: groups!.lazy === undefined && groups!.type === undefined,
  }));
}

it("dependencies between packages point one way", () => {
  const offences = readdirSync(path.join(root, "packages")).flatMap((name) =>
    sources(path.join(root, "packages", name)).flatMap((file) =>
      importsOf(file).flatMap(({ line, specifier, atOnce }) => {
        const where = `${path.relative(root, file)}:${line}`;
        const target = /^@mitos\/([a-z]+)/.exec(specifier)?.[1];
        if (target && target !== name && !allowed[name]?.includes(target)) {
          return [`${where} imports ${specifier}; ${name} may import ${allowed[name]?.join(", ") || "no other package"}`];
        }
        if (name === "cli" && (target === "server" || target === "engine") && atOnce && !file.endsWith(".test.ts")) {
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

it("the SDK takes only the dependency-free entry of protocol, and has no runtime dependency; adapters load their framework, and shims what is Node's, when it is asked for", () => {
  const sdk = path.join(root, "packages/sdk/src");
  const integrations = path.join(sdk, "integrations/");
  // Loaded under Node alone: inside a sandbox, and when files of this machine are named. Everything else is loaded by browsers as well.
  const underNode = ["guest.ts", "daytona/local-files.ts", "build/index.ts", "build/context.ts"];
  const offences = sources(sdk).flatMap((file) =>
    importsOf(file)
      .filter(({ specifier }) => !specifier.startsWith(".") && specifier !== "@mitos/protocol" && !file.endsWith(".test.ts"))
      .filter(({ atOnce }) => atOnce || !file.startsWith(integrations))
      .filter(({ specifier, atOnce }) => !specifier.startsWith("node:") || (atOnce && !underNode.includes(path.relative(sdk, file))))
      .map(({ line, specifier }) => `${path.relative(root, file)}:${line} imports ${specifier}`),
  );
  expect(offences).toEqual([]);
});

it("what browsers load of the SDK loads nothing of its subpath for Node", () => {
  const sdk = path.join(root, "packages/sdk/src");
  const build = path.join(sdk, "build/");
  const offences = sources(sdk).flatMap((file) =>
    importsOf(file)
      .filter(({ specifier }) => specifier.startsWith(".") && !file.startsWith(build))
      .filter(({ specifier }) => path.resolve(path.dirname(file), specifier).startsWith(build))
      .map(({ line, specifier }) => `${path.relative(root, file)}:${line} imports ${specifier}`),
  );
  expect(offences).toEqual([]);
});

it("examples import the SDK and Node, as their readers would", () => {
  // What is below `app` is copied into a template: a project of its own.
  const programs = sources(path.join(root, "examples")).filter((file) => !file.includes("/app/"));
  const offences = programs.flatMap((file) =>
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
