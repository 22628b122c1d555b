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
    .filter((file) => file.endsWith(".md"))
    .flatMap((file) =>
      [...readFileSync(path.join(root, file), "utf8").matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)/g)]
        .filter(([, target]) => !existsSync(path.resolve(root, path.dirname(file), target!)))
        .map(([, target]) => `${file}: ${target}`),
    );
  expect(broken).toEqual([]);
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
  expect(readFileSync(path.join(root, "package-lock.json"), "utf8")).not.toMatch(/"resolved": "https?:/);
});
