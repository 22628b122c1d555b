// Makes Debian roots out of the machine's own archive, with no registry and no privilege: a small one with apt, and layers of packages for it.
import { appendFileSync, cpSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { machineArchive, unpackDistributionPackages } from "./distribution-package.mjs";
import { findImageTool } from "./image-tools.mjs";
import { answers, capture } from "./run.mjs";

const remedy = "Check that the machine's Debian or Ubuntu archive can be reached, then run the command again.";

/** Documentation that nobody reads in a sandbox. The licences stay. */
export const thinOut = `cd "\${1:?}/usr/share" && rm -rf man locale info && { [ ! -d doc ] || find doc -type f ! -name copyright -delete; }`;

/** The archive that they are made of: `{ codename, mirror, components }`. */
export function debianArchive() {
  return machineArchive("a Debian root", remedy);
}

/**
 * Debian's smallest root with apt, as a tar with its true owners.
 *
 * @param {string} target - its name ends in `.tar`
 * @param {{ base?: string, packages?: readonly string[], hooks?: readonly string[], work?: string }} [options] - `base`: the tar of such a root, to
 *   begin with in place of nothing, which takes half the time. `packages` are installed in it as well; `hooks` are lines for the shell, run when all
 *   is installed, with the root's folder as $1; `work` is a folder for what is needed meanwhile, so that whoever is killed knows where it is left
 */
export function debianRoot(target, { base, packages = [], hooks = [], work } = {}) {
  const { codename, mirror, components } = debianArchive();
  const options = [
    ...(packages.length > 0 ? [`--include=${packages.join(",")}`] : []),
    ...(base === undefined
      ? ["--variant=minbase", `--hook-dir=${mergedUsrHook()}`]
      : ["--variant=custom", "--skip=check/empty", `--setup-hook=tar-in "${base}" /`]),
    `--components=${components.replaceAll(" ", ",")}`,
    // Not by filters of dpkg's, which mmdebstrap leaves to another program.
    ...[...hooks, thinOut].map((line) => `--customize-hook=${line}`),
  ];
  startImageTool("mmdebstrap", [...options, codename, target, mirror], { ...mmdebstrapMode(), env: work ? { TMPDIR: work } : {} });
}

/** Whether packages that need their own scripts to be installed can be put into a root. */
export function canRunPackageScripts() {
  return process.getuid() === 0 || canMapIds();
}

/** The first that works here: as root, with mapped user ids, or with ownership that is only pretended. The root is the same. */
function mmdebstrapMode() {
  if (process.getuid() === 0) return { first: ["--mode=root", "--skip=check/canmount"], through: ownMounts() };
  return canMapIds() ? { first: ["--mode=unshare"] } : { first: ["--mode=chrootless"], through: findImageTool("fakeroot") };
}

/** What it mounts is then gone with it, also when it is killed. Who may not do this may not mount either. */
function ownMounts() {
  return answers("unshare", ["--mount", "true"]) ? { command: "unshare", args: ["--mount"], env: {} } : undefined;
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
 * Packages, with what they depend on, as their own files, all owned by root, with their entries in dpkg's database. Their scripts are not run,
 * which cannot be done without privileges.
 *
 * @param {readonly string[]} names
 * @param {{ work: string, base: string, finish?: (folder: string) => void }} options - `work`: an empty folder to work in; `base`: the tar of
 *   the root that the layer goes on; `finish` does what the scripts would have done, and adds files
 * @returns {Promise<string>} its tar, in `work`. Whoever makes it, it is the same
 */
export async function packagesLayer(names, { work, base, finish = () => {} }) {
  const folder = path.join(work, "packages");
  const database = path.join(work, "database/var/lib/dpkg");
  mkdirSync(path.join(database, "info"), { recursive: true });
  const status = path.join(database, "status");
  writeFileSync(status, capture("tar", ["-xOf", base, "./var/lib/dpkg/status"]));
  const have = path.join(work, "base-status");
  cpSync(status, have);
  await unpackDistributionPackages(names, {
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
  finish(folder);
  const target = path.join(work, "packages.tar");
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

/**
 * @param name - of an image tool
 * @param options.first - arguments before `args`
 * @param options.through - a tool that starts it
 * @param options.env - beside the environment
 */
export function startImageTool(name, args, { first = [], through, env = {} } = {}) {
  const tool = findImageTool(name);
  const [command, ...words] = [...(through ? [through.command, ...through.args] : []), tool.command, ...tool.args, ...first, ...args];
  capture(command, words, { env: { ...process.env, ...through?.env, ...tool.env, ...env }, remedy });
}
