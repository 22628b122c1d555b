import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { buildSdk } from "../../scripts/lib/sdk-package.ts";

const run = promisify(execFile);
const root = path.resolve(import.meta.dirname, "../..");

/** A project somewhere else, which has installed the SDK as it is published and nothing more. */
export interface Consumer extends AsyncDisposable {
  readonly dir: string;
  /** The subpaths that the package exports, as they are imported. */
  readonly specifiers: readonly string[];
  /** Runs a program in the project with this environment and no other. @throws when it fails, with what it printed */
  run(program: string, args: readonly string[], environment?: Readonly<Record<string, string>>): Promise<string>;
}

/** Builds, packs and installs the SDK, and copies `programs` into the project. */
export async function makeConsumer(): Promise<Consumer> {
  const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-consumer-"));
  try {
    const built = path.join(dir, "built");
    await buildSdk(built);
    const packed = await run("npm", ["pack", "--json", built], { cwd: dir });
    const [{ filename }] = JSON.parse(packed.stdout) as [{ filename: string }];
    rmSync(built, { recursive: true });
    const project = path.join(dir, "project");
    cpSync(path.join(import.meta.dirname, "programs"), project, { recursive: true });
    writeFileSync(path.join(project, "package.json"), JSON.stringify({ name: "consumer", private: true, type: "module" }));
    await run("npm", ["install", "--offline", "--no-audit", "--no-fund", path.join(dir, filename)], { cwd: project });
    const installed = JSON.parse(readFileSync(path.join(project, "node_modules/@mitos/sdk/package.json"), "utf8")) as { exports: object };
    return {
      dir: project,
      specifiers: Object.keys(installed.exports)
        .filter((subpath) => subpath !== "./package.json")
        .map((subpath) => `@mitos/sdk${subpath.slice(1)}`),
      async run(program, args, environment = {}) {
        const env = { HOME: dir, TMPDIR: dir, NO_COLOR: "1", ...environment };
        try {
          return (await run(program, [...args], { cwd: project, env, maxBuffer: 64 * 1024 * 1024 })).stdout;
        } catch (error) {
          const { stdout, stderr } = error as { stdout?: string; stderr?: string };
          throw new Error(`${path.basename(program)} ${args.join(" ")} failed:\n${stdout ?? ""}${stderr ?? ""}`, { cause: error });
        }
      },
      [Symbol.asyncDispose]: async () => rmSync(dir, { recursive: true, force: true }),
    };
  } catch (error) {
    rmSync(dir, { recursive: true, force: true });
    throw error;
  }
}

export const binary = (name: string) => path.join(root, "node_modules/.bin", name);
export const pinnedNode = path.join(root, "node_modules/node/bin/node");
export const typeRoot = path.join(root, "node_modules/@types");
