// `npm run generate [-- --check]`: writes the protobuf types from the proto files and docs/errors.md from the catalogue, or says what
// is out of date.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { capture, fail, pinnedNode, root, SetupError } from "./lib/run.mjs";

const check = process.argv.includes("--check");
const protocol = path.join(root, "packages/protocol");
const types = path.join(protocol, "src/gen");
const errorsPage = path.join(root, "docs/errors.md");

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

/** path → content of every file below a folder. */
function contents(folder) {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    files.map((entry) => {
      const file = path.join(entry.parentPath ?? entry.path, entry.name);
      return [path.relative(folder, file), readFileSync(file, "utf8")];
    }),
  );
}

function compare() {
  const fresh = mkdtempSync(path.join(os.tmpdir(), "mitos-generate-"));
  try {
    generateTypes(fresh);
    const [wanted, have] = [contents(fresh), contents(types)];
    const stale = [...new Set([...wanted.keys(), ...have.keys()])].filter((file) => wanted.get(file) !== have.get(file));
    if (!existsSync(errorsPage) || readFileSync(errorsPage, "utf8") !== errorsText()) stale.push("docs/errors.md");
    if (stale.length > 0)
      throw new SetupError(`generated files are out of date: ${stale.join(", ")}`, "Run npm run generate and commit the result.");
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

try {
  if (check) compare();
  else {
    generateTypes(types);
    writeFileSync(errorsPage, errorsText());
  }
} catch (error) {
  fail(error);
}
