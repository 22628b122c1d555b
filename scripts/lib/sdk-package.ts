/**
 * Builds the package that is published as `@mitos/sdk`: JavaScript of ES2022 and declarations for each subpath of `exports` in
 * packages/sdk/package.json, with what it uses of @mitos/protocol inside. Frameworks stay imports, and there are no others.
 */

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { rolldown } from "rolldown";

const root = path.resolve(import.meta.dirname, "../..");
const sdk = path.join(root, "packages/sdk");
const protocol = path.join(root, "packages/protocol/src/index.ts");

interface Manifest {
  name: string;
  version: string;
  exports: Record<string, string>;
  [field: string]: unknown;
}

/** One subpath: `./e2b` is built as `e2b.js`, `.` as `index.js`. */
interface Entry {
  readonly subpath: string;
  readonly name: string;
  readonly source: string;
}

/** @param out - is emptied first */
export async function buildSdk(out = path.join(sdk, "dist")): Promise<void> {
  const manifest = JSON.parse(readFileSync(path.join(sdk, "package.json"), "utf8")) as Manifest;
  const entries = Object.entries(manifest.exports).map(([subpath, file]) => toEntry(subpath, file));
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  await writeJavaScript(entries, out);
  writeDeclarations(entries, path.join(out, "types"));
  writeFileSync(path.join(out, "package.json"), `${JSON.stringify(published(manifest, entries), null, 2)}\n`);
  copyFileSync(path.join(sdk, "README.md"), path.join(out, "README.md"));
  copyFileSync(path.join(root, "LICENSE"), path.join(out, "LICENSE"));
  requireSelfContained(out);
}

function toEntry(subpath: string, file: string): Entry {
  if (!/^\.(\/[\w/-]+)?$/.test(subpath) || !/^\.\/src\/.*\.ts$/.test(file)) {
    throw new Error(`exports of packages/sdk/package.json: ${subpath} → ${file} is not a subpath with a source file of its own`);
  }
  return { subpath, name: subpath === "." ? "index" : subpath.slice(2), source: path.join(sdk, file) };
}

/** What entries share is in chunks, so that an error class is the same one whichever subpath it comes from. */
async function writeJavaScript(entries: readonly Entry[], out: string): Promise<void> {
  await using bundle = await rolldown({
    cwd: root,
    input: Object.fromEntries(entries.map(({ name, source }) => [name, source])),
    platform: "neutral",
    external: (id) => !id.startsWith(".") && !path.isAbsolute(id) && id !== "@mitos/protocol",
    resolve: { alias: { "@mitos/protocol": protocol } },
    transform: { target: "es2022" },
  });
  await bundle.write({ dir: out, format: "es", entryFileNames: "[name].js", chunkFileNames: "chunks/[name]-[hash].js" });
}

/** As they are in the sources, a file each, under `types/sdk/src` and `types/protocol/src`. */
function writeDeclarations(entries: readonly Entry[], out: string): void {
  const work = mkdtempSync(path.join(os.tmpdir(), "mitos-sdk-types-"));
  try {
    const config = {
      extends: path.join(root, "tsconfig.json"),
      compilerOptions: {
        noEmit: false,
        declaration: true,
        emitDeclarationOnly: true,
        rootDir: path.join(root, "packages"),
        outDir: out,
        typeRoots: [path.join(root, "node_modules/@types")],
        // Found through node_modules, its files are those of another package, of which the compiler now and then writes no declarations.
        paths: { "@mitos/protocol": [protocol] },
      },
      files: [protocol, ...entries.map(({ source }) => source)],
      include: [],
    };
    writeFileSync(path.join(work, "tsconfig.json"), JSON.stringify(config));
    execFileSync(path.join(root, "node_modules/.bin/tsc"), ["-p", work], { stdio: ["ignore", "inherit", "inherit"] });
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  for (const file of filesBelow(out)) writeFileSync(file, forConsumers(readFileSync(file, "utf8"), file, out));
}

/** Specifiers that resolve without our sources, and the library that `await using` needs, which consumers may not have asked for. */
function forConsumers(text: string, file: string, out: string): string {
  const toProtocol = path.relative(path.dirname(file), path.join(out, "protocol/src/index.js"));
  const rewritten = text
    .replaceAll(/((?:from|import)\s*\(?\s*)"@mitos\/protocol"/g, `$1"${toProtocol.startsWith(".") ? toProtocol : `./${toProtocol}`}"`)
    .replaceAll(/((?:from|import)\s*\(?\s*"\.[^"]*)\.ts"/g, '$1.js"');
  return rewritten.includes("Symbol.asyncDispose") ? `/// <reference lib="esnext.disposable" />\n${rewritten}` : rewritten;
}

function published(manifest: Manifest, entries: readonly Entry[]): object {
  const { name, version, description, keywords, license, engines, peerDependencies, peerDependenciesMeta } = manifest;
  const files = ({ name, source }: Entry) => ({
    types: `./types/sdk/${path.relative(sdk, source).replace(/\.ts$/, ".d.ts")}`,
    default: `./${name}.js`,
  });
  return {
    name,
    version,
    description,
    keywords,
    license,
    type: "module",
    sideEffects: false,
    engines,
    exports: { ...Object.fromEntries(entries.map((entry) => [entry.subpath, files(entry)])), "./package.json": "./package.json" },
    types: files(entries.find(({ subpath }) => subpath === ".")!).types,
    peerDependencies,
    peerDependenciesMeta,
  };
}

/** @throws when a file imports what whoever installs the package does not have */
function requireSelfContained(out: string): void {
  const { peerDependencies = {} } = JSON.parse(readFileSync(path.join(out, "package.json"), "utf8")) as Partial<Manifest>;
  const foreign = filesBelow(out)
    .filter((file) => /\.(js|d\.ts)$/.test(file))
    .flatMap((file) =>
      [
        ...withoutComments(readFileSync(file, "utf8")).matchAll(
          /^(?:import|export)\b[^;]*?\bfrom\s*"([^"]+)"|\bimport\(\s*"([^"]+)"\s*\)|^import\s*"([^"]+)"/gm,
        ),
      ]
        .map(([, from, dynamic, bare]) => from ?? dynamic ?? bare ?? "")
        .filter((specifier) => !/^(\.|node:)/.test(specifier) && !(packageOf(specifier) in (peerDependencies as object)))
        .map((specifier) => `${path.relative(out, file)} imports ${specifier}`),
    );
  if (foreign.length > 0) throw new Error(`the built SDK is not self-contained:\n${foreign.join("\n")}`);
}

/** Samples in them import things too. */
function withoutComments(text: string): string {
  return text.replaceAll(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
}

function packageOf(specifier: string): string {
  return specifier.split("/", specifier.startsWith("@") ? 2 : 1).join("/");
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

if (import.meta.main) {
  const out = path.resolve(process.argv[2] ?? path.join(sdk, "dist"));
  await buildSdk(out);
  process.stderr.write(`built ${path.relative(process.cwd(), out) || "."}; npm pack it from there\n`);
}
