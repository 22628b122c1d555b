import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { catalogue } from "@mitos/protocol";
import { expect, it } from "vitest";

const root = path.resolve(import.meta.dirname, "../..");
const tracked = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], { cwd: root, encoding: "utf8" })
  .split("\n")
  .filter((file) => file && existsSync(path.join(root, file)));

it("every relative link in the documentation leads somewhere", () => {
  const broken = tracked
    .filter((file) => file.endsWith(".md") || file === "llms.txt")
    .flatMap((file) =>
      linksOf(file)
        .filter((target) => !existsSync(path.join(root, target)))
        .map((target) => `${file}: ${target}`),
    );
  expect(broken).toEqual([]);
});

/** Relative links of a page, as paths in the checkout. */
function linksOf(file: string): string[] {
  const links = readFileSync(path.join(root, file), "utf8").matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)/g);
  return [...links].map(([, target]) => path.join(path.dirname(file), target!));
}

it("every link to a heading leads to one", () => {
  const broken = tracked
    .filter((file) => file.endsWith(".md"))
    .flatMap((file) =>
      [...readFileSync(path.join(root, file), "utf8").matchAll(/\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)/g)]
        .filter(([, target, anchor]) => !anchorsOf(target ? path.join(path.dirname(file), target) : file).has(anchor!))
        .map(([, target, anchor]) => `${file}: ${target}#${anchor}`),
    );
  expect(broken).toEqual([]);
});

function anchorsOf(file: string): Set<string> {
  const headings = readFileSync(path.join(root, file), "utf8").matchAll(/^#+ (.+)$/gm);
  return new Set(
    [...headings].map(([, heading]) =>
      heading!
        .toLowerCase()
        .replaceAll(/[^\w\- ]/g, "")
        .replaceAll(" ", "-"),
    ),
  );
}

it.each(["docs/README.md", "llms.txt"])("every page is in the index %s", (index) => {
  const linked = new Set(linksOf(index));
  // The pages of the reference have an index of their own.
  const pages = tracked.filter((file) => /^docs\/.*\.md$/.test(file) && !/^docs\/reference\/(?!README)/.test(file) && file !== index);
  expect(
    pages.filter((page) => !linked.has(page)),
    `add them to ${index}`,
  ).toEqual([]);
});

it("llms.txt has the parts of its format: a title, a summary, and sections of links that say what is there", () => {
  const lines = readFileSync(path.join(root, "llms.txt"), "utf8").split("\n");
  expect(lines[0]).toMatch(/^# \S/);
  expect(lines[2]).toMatch(/^> \S/);
  const sections = lines.slice(lines.findIndex((line) => line.startsWith("## ")));
  expect(sections.filter((line) => line !== "" && !/^(?:## \S.*|- \[[^\]]+\]\([^)]+\): \S.*)$/.test(line))).toEqual([]);
});

it("SKILL.md begins with the name and the description by which agents find it", () => {
  const [, name, description] = /^---\nname: (.+)\ndescription: (.+)\n---\n/.exec(readFileSync(path.join(root, "SKILL.md"), "utf8")) ?? [];
  expect(name).toMatch(/^[a-z0-9-]{1,64}$/);
  expect(description?.length).toBeGreaterThan(50);
  expect(description?.length).toBeLessThanOrEqual(1024);
});

it("docs/errors.md lists exactly the codes of the catalogue, with their status", () => {
  const rows = [...readFileSync(path.join(root, "docs/errors.md"), "utf8").matchAll(/^\| `([a-z_]+)` \| (\d+) \|/gm)];
  const documented = Object.fromEntries(rows.map(([, code, status]) => [code, Number(status)]));
  const wanted = Object.fromEntries(Object.entries(catalogue).map(([code, { status }]) => [code, status]));
  expect(documented, "run npm run generate").toEqual(wanted);
});

it("no file names a folder of somebody's machine or a private registry", () => {
  // `/home/user` is the home of E2B's sandboxes, and of ours for programs that come from there.
  const pattern = /\/(?:root|home)\/(?!user\/)[a-z]+\/|\/work\/(?:main|shared)|npmrc:_auth/;
  const offences = tracked
    .filter((file) => !file.startsWith("test/repository/") && !/\.(png|lock)$/.test(file) && !file.includes("package-lock"))
    .flatMap((file) =>
      readFileSync(path.join(root, file), "utf8")
        .split("\n")
        .flatMap((line, index) => (pattern.test(line) ? [`${file}:${index + 1}: ${line.trim().slice(0, 100)}`] : [])),
    );
  expect(offences).toEqual([]);
});

it("the lock file names no registry", () => {
  expect(readFileSync(path.join(root, "package-lock.json"), "utf8")).not.toMatch(/"resolved": "https?:\/\/(?!registry\.invalid\/)/);
});
