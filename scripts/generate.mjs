// `npm run generate [-- --check]`: writes the protobuf types from the proto files, docs/errors.md from the catalogue, docs/reference from the
// SDK's docstrings and the addresses in package-lock.json, or says what is out of date.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { addressedLock, lockFile } from "./lib/lock-addresses.mjs";
import { capture, fail, pinnedNode, root, SetupError } from "./lib/run.mjs";

const check = process.argv.includes("--check");
const protocol = path.join(root, "packages/protocol");
const types = path.join(protocol, "src/gen");
const errorsPage = path.join(root, "docs/errors.md");
const reference = path.join(root, "docs/reference");

function generateTypes(out) {
  const template = JSON.stringify({
    version: "v2",
    inputs: [{ directory: "proto" }],
    plugins: [{ local: path.join(root, "node_modules/.bin/protoc-gen-es"), out, opt: ["target=js+dts", "import_extension=js"] }],
  });
  capture(path.join(root, "node_modules/.bin/buf"), ["generate", "--template", template], { cwd: protocol });
}

function errorsText() {
  return capture(pinnedNode, [path.join(root, "scripts/lib/errors-page.ts")]);
}

function generateReference(out) {
  capture(pinnedNode, [path.join(root, "scripts/lib/reference-pages.ts"), path.join(root, "packages/sdk"), out], {
    remedy: "Write what is missing in packages/sdk/src.",
  });
}

/** path → content of every file below a folder. */
function contents(folder) {
  if (!existsSync(folder)) return new Map();
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    files.map((entry) => {
      const file = path.join(entry.parentPath ?? entry.path, entry.name);
      return [path.relative(folder, file), readFileSync(file, "utf8")];
    }),
  );
}

function differences(freshFolder, folder) {
  const [wanted, have] = [contents(freshFolder), contents(folder)];
  const stale = [...new Set([...wanted.keys(), ...have.keys()])].filter((file) => wanted.get(file) !== have.get(file));
  return stale.map((file) => path.join(path.relative(root, folder), file));
}

function compare() {
  const fresh = mkdtempSync(path.join(os.tmpdir(), "mitos-generate-"));
  const [freshTypes, freshReference] = [path.join(fresh, "types"), path.join(fresh, "reference")];
  try {
    generateTypes(freshTypes);
    generateReference(freshReference);
    const stale = [...differences(freshTypes, types), ...differences(freshReference, reference)];
    if (!existsSync(errorsPage) || readFileSync(errorsPage, "utf8") !== errorsText()) stale.push("docs/errors.md");
    if (readFileSync(lockFile, "utf8") !== addressedLock()) stale.push("package-lock.json");
    if (stale.length > 0)
      throw new SetupError(`generated files are out of date: ${stale.join(", ")}`, "Run npm run generate and commit the result.");
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

/** A page whose subpath is gone goes with it; nothing is touched when a docstring is missing. */
function replaceReference() {
  const fresh = mkdtempSync(path.join(os.tmpdir(), "mitos-generate-"));
  try {
    generateReference(fresh);
    rmSync(reference, { recursive: true, force: true });
    cpSync(fresh, reference, { recursive: true });
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

try {
  if (check) compare();
  else {
    generateTypes(types);
    writeFileSync(errorsPage, errorsText());
    writeFileSync(lockFile, addressedLock());
    replaceReference();
  }
} catch (error) {
  fail(error);
}
