import { execFile } from "node:child_process";
import { realpath } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { firstExecutable, firstLine, MissingPart, onPath } from "../host/parts.ts";

const run = promisify(execFile);

/** Before it, a restored guest is not told that its vsock connections are gone. */
const oldest = [1, 10] as const;

const install =
  "Download Firecracker and its jailer from its releases page, put both on PATH, or set MITOS_FIRECRACKER (and MITOS_JAILER) to their paths.";

export interface Firecracker {
  readonly path: string;
  /** For example `Firecracker v1.15.0`. */
  readonly build: string;
  /** Of the same version. Undefined: there is none, or this user is not root, whom it needs. */
  readonly jailer: string | undefined;
}

export interface FirecrackerPaths {
  /** Else `$MITOS_FIRECRACKER` or PATH. */
  readonly firecracker?: string | undefined;
  /** Else `$MITOS_JAILER`, beside Firecracker, or PATH. */
  readonly jailer?: string | undefined;
}

/** @throws MissingPart when there is none, when it is too old, or when the jailer is of another version */
export async function findFirecracker(paths: FirecrackerPaths = {}): Promise<Firecracker> {
  const asked = paths.firecracker ?? process.env.MITOS_FIRECRACKER;
  const found = await firstExecutable(asked ? [asked] : onPath("firecracker"));
  if (!found) throw new MissingPart(asked ? `${asked} cannot be run` : "Firecracker was not found", install);
  const file = await realpath(found);
  const version = await versionOf(file, "Firecracker");
  const [major, minor] = version.split(".").map(Number) as [number, number];
  if (major < oldest[0] || (major === oldest[0] && minor < oldest[1])) {
    throw new MissingPart(`${file} is v${version}: Mitos needs v${oldest.join(".")} or newer`, install);
  }
  return { path: file, build: `Firecracker v${version}`, jailer: await findJailer(paths, file, version) };
}

async function findJailer(paths: FirecrackerPaths, firecracker: string, version: string): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const asked = paths.jailer ?? process.env.MITOS_JAILER;
  const found = await firstExecutable(asked ? [asked] : [path.join(path.dirname(firecracker), "jailer"), ...onPath("jailer")]);
  if (!found) {
    if (asked) throw new MissingPart(`${asked} cannot be run`, install);
    return undefined;
  }
  const jailer = await realpath(found);
  if (!path.basename(firecracker).includes("firecracker")) {
    throw new MissingPart(`the jailer only runs programs with "firecracker" in their name, and this one is ${firecracker}`, install);
  }
  const own = await versionOf(jailer, "Jailer");
  if (own !== version) throw new MissingPart(`${jailer} is v${own}, and Firecracker is v${version}`, install);
  return jailer;
}

/** `Firecracker v1.15.0`, `Jailer v1.15.0`. */
async function versionOf(file: string, name: string): Promise<string> {
  let text: string;
  try {
    text = (await run(file, ["--version"], { timeout: 10_000 })).stdout;
  } catch (reason) {
    throw new MissingPart(`${file} --version failed: ${firstLine(reason)}`, install);
  }
  const version = parseVersion(text, name);
  if (!version) throw new MissingPart(`${file} does not say its version`, install);
  return version;
}

export function parseVersion(text: string, name: string): string | undefined {
  return new RegExp(`^${name} v(\\d+\\.\\d+\\.\\d+\\S*)`, "m").exec(text)?.[1];
}
