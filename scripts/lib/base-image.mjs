// Makes the real image of the tests, once: a small Debian out of the machine's own archive, as an OCI layout in .cache/base-image. Two
// layers: Debian with apt (`base`), and Python on top (`python`).
import { createHash } from "node:crypto";
import {
  appendFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { machineArchive, unpackDistributionPackages } from "./distribution-package.mjs";
import { ensureImageTools, findImageTool } from "./image-tools.mjs";
import { answers, cache, capture } from "./run.mjs";

const parent = path.join(cache, "base-image");
const remedy = "Check that the machine's Debian or Ubuntu archive can be reached, then run the command again.";

/** Documentation that nobody reads in a test. The licences stay. */
const thinOut = `cd "\${1:?}/usr/share" && rm -rf man locale info && { [ ! -d doc ] || find doc -type f ! -name copyright -delete; }`;
const python = ["python3"];
/** Goes into the key: a change of the recipe below makes the image anew. */
const recipe = 2;

/** What the image says about running it. */
const configuration = [
  ["--config.env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
  ["--config.env", "LANG=C.UTF-8"],
  ["--config.cmd", "bash"],
].flat();

/** @returns a note about where it is. */
export function ensureBaseImage() {
  const folder = baseImageFolder();
  if (existsSync(folder)) return path.basename(folder);
  ensureImageTools();
  mkdirSync(parent, { recursive: true });
  const partial = mkdtempSync(path.join(parent, "partial-"));
  const work = mkdtempSync(path.join(os.tmpdir(), "mitos-base-image-"));
  try {
    const layout = path.join(partial, "layout");
    const base = path.join(work, "base.tar");
    debianRoot(base);
    const layers = [
      { tag: "base", onto: undefined, tar: base },
      { tag: "python", onto: "base", tar: pythonLayer(work, base) },
    ];
    umoci("init", "--layout", layout);
    for (const { tag, onto, tar } of layers) {
      if (onto) umoci("tag", "--image", `${layout}:${onto}`, tag);
      else umoci("new", "--image", `${layout}:${tag}`);
      umoci("raw", "add-layer", "--image", `${layout}:${tag}`, tar);
      umoci("config", "--image", `${layout}:${tag}`, ...(onto ? [] : configuration));
    }
    umoci("gc", "--layout", layout);
    becomeFolder(layout, folder);
    forgetOthers(folder);
  } finally {
    for (const dir of [partial, work]) rmSync(dir, { recursive: true, force: true });
  }
  return `made, ${path.basename(folder)}`;
}

/** The layout's folder, whether it is there or not. */
export function baseImageFolder() {
  const { codename, mirror, components } = machineArchive("the base image of the tests", remedy);
  const key = createHash("sha256")
    .update(JSON.stringify([recipe, codename, mirror, components, python, thinOut, configuration]))
    .digest("hex");
  return path.join(parent, `${codename}-${process.arch}-${key.slice(0, 12)}`);
}

/**
 * Debian's smallest root with apt, as a tar with its true owners.
 *
 * @param {string} target - its name ends in `.tar`
 * @param {{ packages?: readonly string[], hooks?: readonly string[] }} [options] - `packages` are installed in it as well; `hooks` are lines
 *   for the shell, run when all is installed, with the root's folder as $1
 */
export function debianRoot(target, { packages = [], hooks = [] } = {}) {
  const { codename, mirror, components } = machineArchive("the base image of the tests", remedy);
  const options = [
    ...(packages.length > 0 ? [`--include=${packages.join(",")}`] : []),
    "--variant=minbase",
    `--hook-dir=${mergedUsrHook()}`,
    `--components=${components.replaceAll(" ", ",")}`,
    // Not by filters of dpkg's, which mmdebstrap leaves to another program.
    ...[...hooks, thinOut].map((line) => `--customize-hook=${line}`),
  ];
  start("mmdebstrap", mmdebstrapMode(), [...options, codename, target, mirror]);
}

/** Whether packages that need their own scripts to be installed can be put into a root. */
export function canRunPackageScripts() {
  return process.getuid() === 0 || canMapIds();
}

/** The first that works here: as root, with mapped user ids, or with ownership that is only pretended. The root is the same. */
function mmdebstrapMode() {
  if (process.getuid() === 0) return { args: ["--mode=root", "--skip=check/canmount"] };
  return canMapIds() ? { args: ["--mode=unshare"] } : { args: ["--mode=chrootless"], through: findImageTool("fakeroot") };
}

/** Makes the links of a merged /usr before anything is unpacked, with which no mode needs perl for a conversion. */
function mergedUsrHook() {
  const command = capture("sh", ["-c", 'command -v "$1"', "sh", findImageTool("mmdebstrap").command]).trim();
  return path.join(path.dirname(command), "../share/mmdebstrap/hooks/merged-usr");
}

function canMapIds() {
  const { username } = os.userInfo();
  const mayUse = (file) =>
    existsSync(file) &&
    readFileSync(file, "utf8")
      .split("\n")
      .some((line) => line.startsWith(`${username}:`));
  const isInstalled = answers("sh", ["-c", "command -v newuidmap && command -v newgidmap"]);
  return isInstalled && mayUse("/etc/subuid") && mayUse("/etc/subgid") && answers("unshare", ["--user", "--map-root-user", "true"]);
}

/**
 * Python as its packages' own files, all owned by root, with their entries in dpkg's database. Their scripts are not run: they would only
 * compile the modules, and cannot be run without privileges.
 */
function pythonLayer(work, base) {
  const folder = path.join(work, "python");
  const database = path.join(work, "database/var/lib/dpkg");
  mkdirSync(path.join(database, "info"), { recursive: true });
  const status = path.join(database, "status");
  writeFileSync(status, capture("tar", ["-xOf", base, "./var/lib/dpkg/status"]));
  const have = path.join(work, "base-status");
  cpSync(status, have);
  unpackDistributionPackages(python, {
    folder,
    have,
    remedy,
    suites: ({ codename }) => [codename],
    onArchive(archive) {
      const control = capture("dpkg-deb", ["-f", archive]);
      appendFileSync(status, `\n${control.replace(/^Package: .*$/m, "$&\nStatus: install ok installed").trim()}\n`);
      const field = (name) => new RegExp(`^${name}: (.*)$`, "m").exec(control)?.[1];
      const qualified = field("Multi-Arch") === "same" ? `${field("Package")}:${field("Architecture")}` : field("Package");
      const files = capture("sh", ["-c", 'dpkg-deb --fsys-tarfile "$1" | tar -t', "sh", archive]);
      writeFileSync(path.join(database, "info", `${qualified}.md5sums`), capture("dpkg-deb", ["-I", archive, "md5sums"]));
      writeFileSync(path.join(database, "info", `${qualified}.list`), files.replace(/^\.\/(.*?)\/?$/gm, "/$1").replace(/^\/$/m, "/."));
    },
  });
  cpSync(path.join(work, "database"), folder, { recursive: true });
  mergeUsr(folder);
  capture("sh", ["-c", thinOut, "sh", folder]);
  const target = path.join(work, "python.tar");
  // Whoever makes it, the tar is the same.
  capture("tar", ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf", target, "-C", folder, "."]);
  return target;
}

/** The base has `/lib` and its like as links: a folder of that name in a layer above would take their place. */
function mergeUsr(folder) {
  for (const name of readdirSync(folder)) {
    const dir = path.join(folder, name);
    if (!/^s?bin$|^lib/.test(name) || !lstatSync(dir).isDirectory()) continue;
    cpSync(dir, path.join(folder, "usr", name), { recursive: true, verbatimSymlinks: true });
    rmSync(dir, { recursive: true });
  }
}

function umoci(...args) {
  start("umoci", {}, args);
}

function start(name, { args = [], through }, rest) {
  const tool = findImageTool(name);
  const [command, ...words] = [...(through ? [through.command, ...through.args] : []), tool.command, ...tool.args, ...args, ...rest];
  capture(command, words, { env: { ...process.env, ...through?.env, ...tool.env }, remedy });
}

/** Whole or not at all; when another process was faster, its folder is as good. */
function becomeFolder(partial, folder) {
  try {
    renameSync(partial, folder);
  } catch (error) {
    if (!existsSync(folder)) throw error;
  }
}

function forgetOthers(folder) {
  for (const name of readdirSync(parent)) {
    if (name !== path.basename(folder) && !name.startsWith("partial-")) rmSync(path.join(parent, name), { recursive: true, force: true });
  }
}
