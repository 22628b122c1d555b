// Writes the reference pages of a package: `node reference-pages.ts <package folder> <output folder>`. One page for each subpath of its
// `exports`, from the declarations that the compiler emits: signatures as they are published, docstrings as they are written.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import {
  isClassDeclaration,
  isFunctionDeclaration,
  isMethodDeclaration,
  isTypeAliasDeclaration,
  isVariableDeclaration,
} from "typescript/unstable/ast/is";
import { API, SymbolFlags } from "typescript/unstable/sync";

const root = path.resolve(import.meta.dirname, "../..");
const [packageFolder, outFolder] = process.argv.slice(2).map((folder) => path.resolve(folder));

type Snapshot = ReturnType<InstanceType<typeof API>["updateSnapshot"]>;
type Project = ReturnType<Snapshot["getProjects"]>[number];
type Declaration = NonNullable<ReturnType<ReturnType<Project["checker"]["getExportsOfModule"]>[number]["declarations"][number]["resolve"]>>;

interface Entry {
  /** `.` or `./name`, as in package.json. */
  readonly subpath: string;
  readonly specifier: string;
  readonly page: string;
  readonly source: string;
}

interface Exported {
  readonly name: string;
  readonly kind: Kind;
  readonly doc: Doc;
  /** TypeScript, as it is shown. */
  readonly signature: string;
  readonly methods: readonly { readonly name: string; readonly doc: Doc; readonly signature: string }[];
}

const kinds = ["Functions", "Classes", "Types", "Constants"] as const;
type Kind = (typeof kinds)[number];

interface Doc {
  readonly text: string;
  readonly tags: readonly { readonly name: string; readonly text: string }[];
}

/** A result that is inferred from a framework may be pages long; what it is called there says more. */
const inferredCharactersMax = 1000;

const manifest = JSON.parse(readFileSync(path.join(packageFolder!, "package.json"), "utf8")) as {
  name: string;
  exports: Record<string, string>;
};
const entries = entriesOf(manifest);
const pages = readPages();
const undocumented = pages.flatMap(({ entry, exported }) =>
  exported.filter(({ doc }) => !isSaid(doc)).map(({ name }) => `${entry.specifier} exports ${name} without a docstring`),
);
if (undocumented.length > 0) {
  process.stderr.write(`${undocumented.join("\n")}\nSay above each declaration what the signature cannot.\n`);
  process.exit(1);
}
mkdirSync(outFolder!, { recursive: true });
for (const page of pages) writeFileSync(path.join(outFolder!, page.entry.page), pageText(page));
writeFileSync(path.join(outFolder!, "README.md"), indexText());

function entriesOf({ name, exports }: typeof manifest): Entry[] {
  const short = name.replace(/^@[^/]+\//, "");
  return Object.entries(exports).map(([subpath, source]) => {
    const rest = subpath.replace(/^\.\/?/, "");
    return {
      subpath,
      specifier: rest ? `${name}/${rest}` : name,
      page: `${[short, ...rest.split("/").filter(Boolean)].join("-")}.md`,
      source: path.join(packageFolder!, source),
    };
  });
}

function readPages(): { entry: Entry; about: string; exported: Exported[] }[] {
  mkdirSync(path.join(root, ".cache"), { recursive: true });
  // Inside the checkout, so that imports are found.
  const folder = mkdtempSync(path.join(root, ".cache/reference-"));
  try {
    const files = entries.map(({ source }) => declarationsOf(folder, source));
    emit(folder);
    return withProject(folder, files, (project) =>
      entries.map((entry, index) => ({
        entry,
        about: moduleDoc(readFileSync(entry.source, "utf8")),
        exported: exportsOf(project, files[index]!).sort((a, b) => a.name.localeCompare(b.name, "en")),
      })),
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function declarationsOf(folder: string, source: string): string {
  return path.join(folder, path.relative(root, source).replace(/\.ts$/, ".d.ts"));
}

function emit(folder: string): void {
  const compilerOptions = { noEmit: false, declaration: true, emitDeclarationOnly: true, outDir: folder, rootDir: root };
  const config = path.join(folder, "emit.json");
  const files = entries.map(({ source }) => source);
  writeFileSync(config, JSON.stringify({ extends: path.join(root, "tsconfig.json"), compilerOptions, include: [], files }));
  execFileSync(process.execPath, [path.join(root, "node_modules/typescript/bin/tsc"), "-p", config], { stdio: ["ignore", 2, "inherit"] });
}

function withProject<T>(folder: string, files: readonly string[], read: (project: Project) => T): T {
  const config = path.join(folder, "read.json");
  writeFileSync(config, JSON.stringify({ extends: path.join(root, "tsconfig.json"), include: [], files }));
  const api = new API({ cwd: root });
  try {
    return read(api.updateSnapshot({ openProjects: [config] }).getProjects()[0]!);
  } finally {
    api.close();
  }
}

function exportsOf({ checker, program }: Project, file: string): Exported[] {
  const module = checker.getSymbolAtLocation(program.getSourceFile(file)!);
  if (!module) return [];
  return checker.getExportsOfModule(module).map((symbol) => {
    const target = symbol.flags & SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
    const declarations = target.declarations.map((handle) => handle.resolve()!);
    return toExported(symbol.name, declarations);
  });
}

function toExported(name: string, declarations: readonly Declaration[]): Exported {
  const [first] = declarations;
  const doc = declarations.map(docOf).find(isSaid) ?? { text: "", tags: [] };
  if (isClassDeclaration(first!)) {
    const members = first.members.filter(isPublic);
    const isMethod = (member: (typeof members)[number]) => isMethodDeclaration(member);
    const shown = members.filter((member) => !isMethod(member)).map((member) => `    ${withDoc(member)}`);
    const head = textOf(first).slice(0, textOf(first).indexOf("{")).trim();
    const methods = members.filter(isMethod).map((member) => ({
      name: `${name}${memberName(member)}`,
      doc: docOf(member),
      signature: signatureOf(member).replaceAll("\n    ", "\n"),
    }));
    return {
      name,
      kind: "Classes",
      doc,
      signature: `${shortened(head)} {${shown.map((member) => `\n${member}`).join("")}${shown.length > 0 ? "\n" : ""}}`,
      methods,
    };
  }
  const kind = isFunctionDeclaration(first!) ? "Functions" : isVariableDeclaration(first!) ? "Constants" : "Types";
  const text = declarations.map((declaration) =>
    shortened(isVariableDeclaration(declaration) ? `const ${signatureOf(declaration)}` : signatureOf(declaration)),
  );
  return { name, kind, doc, signature: text.join("\n"), methods: [] };
}

/** `.fork`, or `[Symbol.asyncDispose]`. */
function memberName({ name }: Declaration & { readonly name?: Declaration }): string {
  const text = name ? textOf(name) : "";
  return text.startsWith("[") ? text : `.${text}`;
}

function isPublic(member: Declaration): boolean {
  return !/^(?:#|private\b|protected\b)/.test(textOf(member));
}

function withDoc(member: Declaration): string {
  const comment = commentOf(member);
  return comment ? `${comment}\n    ${textOf(member)}` : textOf(member);
}

function sourceOf(node: Declaration): string {
  let at = node as { parent?: unknown; text?: string };
  while (at.parent) at = at.parent as typeof at;
  return at.text!;
}

function signatureOf(node: Declaration & { readonly type?: Declaration }): string {
  const text = textOf(node).replaceAll(/\bimport\("[^"]+"\)\./g, "");
  const type = isTypeAliasDeclaration(node) ? undefined : node.type;
  if (!type || textOf(type).length <= inferredCharactersMax) return text.endsWith(";") || text.endsWith("}") ? text : `${text};`;
  return `${textOf(node).slice(0, type.getStart() - node.getStart())}…;`;
}

/** Without what stands before it. */
function textOf(node: Declaration): string {
  return sourceOf(node).slice(node.getStart(), node.end);
}

function shortened(text: string): string {
  return text.replace(/^(?:export )?(?:declare )?/, "");
}

function commentOf(node: Declaration): string {
  const owner = isVariableDeclaration(node) ? (node.parent!.parent as Declaration) : node;
  return (
    sourceOf(owner)
      .slice(owner.pos, owner.getStart())
      .match(/\/\*\*[\s\S]*?\*\//g)
      ?.at(-1) ?? ""
  );
}

function docOf(node: Declaration): Doc {
  return parseDoc(commentOf(node));
}

function isSaid({ text, tags }: Doc): boolean {
  return text !== "" || tags.length > 0;
}

function parseDoc(comment: string): Doc {
  const lines = comment.replace(/^\/\*\*|\*\/$/g, "").split("\n");
  const plain = lines
    .map((line) => line.replace(/^\s*\* ?/, "").trimEnd())
    .join("\n")
    .trim();
  const [text = "", ...rest] = plain.split(/(?:^|\s)@(param|returns|throws|see)\s+/);
  const tags = [];
  for (let at = 0; at < rest.length; at += 2) tags.push({ name: rest[at]!, text: rest[at + 1]!.replaceAll(/\s*\n\s*/g, " ").trim() });
  return { text: text.trim(), tags };
}

/** The comment at the top of a file that belongs to no declaration. */
function moduleDoc(source: string): string {
  return parseDoc(/^\/\*\*[\s\S]*?\*\/(?=\n\n)/.exec(source)?.[0] ?? "").text;
}

function pageText({ entry, about, exported }: (typeof pages)[number]): string {
  const sections = kinds.flatMap((kind) => {
    const members = exported.filter((candidate) => candidate.kind === kind);
    return members.length === 0 ? [] : [`## ${kind}`, ...members.flatMap((member) => exportText(member, entry))];
  });
  return `${[
    `# \`${entry.specifier}\``,
    "<!-- Written by npm run generate from the docstrings. -->\n<!-- blocks: not run, because they are declarations -->",
    ...(about ? [about] : []),
    ...sections,
  ].join("\n\n")}\n`;
}

function exportText({ name, doc, signature, methods }: Exported, entry: Entry): string[] {
  const own = [`### \`${name}\``, ...docText(doc), code(signature), ...usedTypes(signature, name, entry)];
  const those = methods.flatMap((method) => [
    `#### \`${method.name}\``,
    ...docText(method.doc),
    code(method.signature),
    ...usedTypes(method.signature, name, entry),
  ]);
  return [...own, ...those];
}

function docText({ text, tags }: Doc): string[] {
  const words: Readonly<Record<string, string>> = { returns: "Returns", throws: "Throws", see: "See" };
  const lines = tags.map((tag) => {
    const parameter = /^(\S+)\s+-\s+(.*)$/.exec(tag.text);
    return tag.name === "param" && parameter ? `- \`${parameter[1]}\`: ${parameter[2]}` : `- ${words[tag.name] ?? tag.name}: ${tag.text}`;
  });
  return [...(text ? [text] : []), ...(lines.length > 0 ? [lines.join("\n")] : [])];
}

function code(text: string): string {
  return `\`\`\`ts\n${text}\n\`\`\``;
}

/** Links to what a signature names: on its own page, or on that of the package itself. */
function usedTypes(signature: string, self: string, entry: Entry): string[] {
  const own = pages.find((page) => page.entry === entry)!;
  const words = new Set(signature.replaceAll(/\/\*[\s\S]*?\*\//g, "").match(/\b[A-Z]\w+/g));
  const links = [...words].sort().flatMap((word) => {
    if (word === self) return [];
    const page = [own, pages[0]!].find(({ exported }) => exported.some(({ name, kind }) => name === word && kind !== "Constants"));
    if (!page) return [];
    return [`[\`${word}\`](${page === own ? "" : page.entry.page}#${word.toLowerCase()})`];
  });
  return links.length > 0 ? [`Types: ${links.join(", ")}`] : [];
}

function indexText(): string {
  const rows = pages.map(({ entry, exported }) => {
    const names = exported.filter(({ kind }) => kind === "Functions" || kind === "Classes").map(({ name }) => `\`${name}\``);
    return `| [\`${entry.specifier}\`](${entry.page}) | ${names.join(", ")} |`;
  });
  return `# Reference

<!-- Written by npm run generate from the docstrings. -->

Every export, with its signature and what is said of it in the source. By task, and with samples that run: [SDK](../sdk.md).

| import | functions and classes |
| --- | --- |
${rows.join("\n")}
`;
}
