import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { root } from "./markdown.ts";

/**
 * Checks TypeScript of pages as one program, by the rules of this repository but for unused names.
 *
 * @param sources - page → code
 * @returns the compiler's messages, with pages and their lines
 */
export async function typeErrors(sources: readonly { readonly name: string; readonly code: string }[]): Promise<string[]> {
  const parent = path.join(root, ".cache/docs");
  mkdirSync(parent, { recursive: true });
  const folder = mkdtempSync(path.join(parent, "types-"));
  try {
    const files = sources.map(({ name, code }) => {
      const file = path.join(folder, `${name}.ts`);
      mkdirSync(path.dirname(file), { recursive: true });
      writeFileSync(file, code);
      return file;
    });
    const compilerOptions = { noUnusedLocals: false, noUnusedParameters: false, moduleDetection: "force" };
    writeFileSync(
      path.join(folder, "tsconfig.json"),
      JSON.stringify({ extends: path.join(root, "tsconfig.json"), compilerOptions, include: [], files }),
    );
    const tsc = path.join(root, "node_modules/.bin/tsc");
    const { stdout } = await promisify(execFile)(tsc, ["-p", folder, "--pretty", "false"], { cwd: folder }).catch(
      (error: { stdout?: string }) => {
        if (error.stdout) return { stdout: error.stdout };
        throw error;
      },
    );
    return stdout.split("\n").filter((line) => line !== "");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
