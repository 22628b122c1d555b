import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { debianRoot } from "../../scripts/lib/debian-root.mjs";
import { cache, pinnedNode } from "../../scripts/lib/run.mjs";
import { debian as baseImage } from "../support/base-image.ts";
import { imageOf, type LayerBlob, layerOf, type OciImage, type RunConfig, uncompressed } from "../support/oci.ts";
import type { Registry } from "../support/registry.ts";
import { certificates, packageEnvironment } from "./package-hosts.ts";

/**
 * Docker Hub cannot be asked in a test, so images of the same names stand in for its images: Debian of the machine's own archive with what an
 * example counts on being there, and nothing more. What differs from the real ones is said in examples/templates/README.md.
 */
const standIns: Readonly<Record<string, (debian: Debian) => OciImage>> = {
  "library/python:3.12-slim": (debian) =>
    standIn([debian(["python3", "python3-pip"], pythonHook)], { Env: [`PATH=${defaultPath}`], Cmd: ["python3"] }),
  "library/node:24-slim": (debian) => standIn([debian(["ca-certificates"]), node()], nodeRun),
  // With the packages that the example installs: to unpack them takes apt a minute inside a sandbox, and its own step finds them there.
  "library/node:24-bookworm-slim": (debian) =>
    standIn([debian(["ca-certificates", "chromium-headless-shell", "fonts-dejavu-core"]), node()], nodeRun),
  "library/postgres:15": (debian) =>
    standIn([debian(["postgresql-15"], postgresHook), postgresEntrypoint()], {
      Env: [`PATH=${defaultPath}:/usr/lib/postgresql/15/bin`, "LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data"],
      Entrypoint: ["docker-entrypoint.sh"],
      Cmd: ["postgres"],
    }),
};

/** Puts them where a registry that mirrors Docker Hub has them. */
export async function pushStandIns(registry: Registry): Promise<void> {
  const [base] = (await baseImage("base")).layers as [LayerBlob];
  for (const [name, make] of Object.entries(standIns)) await registry.push(make(debianOn(base)), name);
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const npmVersion = "11.21.2";
const nodeRun: RunConfig = { Env: [`PATH=${defaultPath}`], Cmd: ["node"] };

/** As in the image: `python` and `pip` are there, and pip installs without being told that it may. */
const pythonHook = 'ln -s python3 "$1/usr/bin/python" && rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED';
/** Debian's package has made a database, the image has none. */
const postgresHook = [
  'rm -rf "$1/var/lib/postgresql/15" "$1/etc/postgresql/15"',
  'mkdir "$1/docker-entrypoint-initdb.d"',
  'chroot "$1" install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data',
].join(" && ");

/** With what this machine needs to reach its package registries. */
function standIn(layers: readonly LayerBlob[], { Env = [], ...run }: RunConfig): OciImage {
  const trust = layerOf([{ name: "etc/ssl/certs/ca-certificates.crt", content: certificates() }], "none");
  const environment = Object.entries(packageEnvironment()).map(([name, value]) => `${name}=${value}`);
  return imageOf([...layers, trust], { Env: [...Env, ...environment], ...run });
}

/** Debian with these packages. */
type Debian = (packages: readonly string[], hook?: string) => LayerBlob;

/** Made of the tests' base image once, and kept in the checkout's cache folder. */
function debianOn(base: LayerBlob): Debian {
  return (packages, hook) => {
    const key = createHash("sha256")
      .update(JSON.stringify([base.diffId, packages, hook]))
      .digest("hex");
    return kept(`debian-${key.slice(0, 12)}.tar`, (target, work) => {
      const file = path.join(work, "base.tar");
      writeFileSync(file, uncompressed(base));
      debianRoot(target, { base: file, packages, hooks: hook ? [hook] : [] });
    });
  };
}

/** Node and npm, where the image has them. The repository's own Node: what else is at hand may be too old. */
function node(): LayerBlob {
  const nodeVersion = execFileSync(pinnedNode, ["--version"], { encoding: "utf8" }).trim();
  return kept(`node-${nodeVersion}-${process.arch}-npm-${npmVersion}.tar`, (target, work) => {
    const archive = execFileSync("npm", ["pack", "--silent", `npm@${npmVersion}`], { cwd: work, encoding: "utf8" }).trim();
    const script = `
      mkdir -p root/usr/local/bin root/usr/local/lib/node_modules
      tar -xzf "$1" -C root/usr/local/lib/node_modules
      mv root/usr/local/lib/node_modules/package root/usr/local/lib/node_modules/npm
      cp -L "$2" root/usr/local/bin/node
      for name in npm npx; do ln -s ../lib/node_modules/npm/bin/$name-cli.js root/usr/local/bin/$name; done
      tar --sort=name --owner=0 --group=0 --numeric-owner -cf "$3" -C root usr`;
    execFileSync("sh", ["-ec", script, "sh", archive, pinnedNode, target], { cwd: work });
  });
}

/** What the image's own does with an empty database, in a few lines: makes it, loads what lies ready, and then serves. */
function postgresEntrypoint(): LayerBlob {
  const content = readFileSync(path.join(import.meta.dirname, "postgres-entrypoint.sh"));
  return layerOf([{ name: "usr/local/bin/docker-entrypoint.sh", content, mode: 0o755 }], "none");
}

function kept(name: string, make: (target: string, work: string) => void): LayerBlob {
  const folder = path.join(cache, "stand-ins");
  const file = path.join(folder, name);
  if (!existsSync(file)) {
    mkdirSync(folder, { recursive: true });
    const work = mkdtempSync(path.join(folder, "partial-"));
    try {
      make(path.join(work, "layer.tar"), work);
      renameSync(path.join(work, "layer.tar"), file);
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }
  return layerOf(readFileSync(file), "none");
}
