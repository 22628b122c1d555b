// The root of templates that have no image of their own: the machine's distribution, small, with what agents reach for, as one EROFS image.
import { chmodSync, copyFileSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { debianArchive, debianRoot, packagesLayer } from "../debian-root.mjs";
import { ensureImageTools } from "../image-tools.mjs";
import { capture, pinnedNode, root } from "../run.mjs";
import { ensurePart, hashOfFile } from "./parts.mjs";

/** Goes into the part's key: a change of what is done below makes it anew. */
const recipe = 2;
const packages = [
  ...["python3", "python3-pip", "python3-venv"],
  ...["ca-certificates", "curl", "git", "openssh-client"],
  ...["procps", "less", "file", "jq", "unzip", "xz-utils"],
];

/** What mmdebstrap copies from the machine that makes it. */
const forgetMachine = `rm -f "$1/etc/hostname" "$1/etc/resolv.conf"`;

/** @returns a note about it */
export function ensureRoot() {
  const { codename } = debianArchive();
  return ensurePart("root", { recipe, codename, packages, node: hashOfFile(pinnedNode) }, async (work) => {
    await ensureImageTools(["mmdebstrap", "fakeroot"]);
    const base = path.join(work, "base.tar");
    debianRoot(base, { hooks: [forgetMachine], work });
    mkdirSync(path.join(work, "layer"));
    const added = await packagesLayer(packages, { work: path.join(work, "layer"), base, finish });
    const layers = [base, added].map((tar, index) => unpack(tar, path.join(work, `layer-${index}`)));
    const made = path.join(work, "root.erofs");
    capture(layersTool(), ["image", "--out", made, ...layers]);
    chmodSync(made, 0o444);
    const hash = hashOfFile(made);
    return { made, name: `root-${hash.slice(0, 12)}.erofs`, record: { hash } };
  });
}

function unpack(tar, folder) {
  mkdirSync(folder);
  capture("sh", ["-c", '"$1" unpack --into "$2" < "$3"', "sh", layersTool(), folder, tar]);
  return folder;
}

function layersTool() {
  const built = path.join(root, "guest/target", "x86_64-unknown-linux-gnu/release/mitos-layers");
  return process.env.MITOS_LAYERS ?? built;
}

/** What the packages' scripts would have done, and what is not of a package. */
function finish(folder) {
  listCertificates(folder);
  compilePython(folder);
  const local = path.join(folder, "usr/local/bin");
  mkdirSync(local, { recursive: true });
  copyFileSync(pinnedNode, path.join(local, "node"));
  chmodSync(path.join(local, "node"), 0o755);
  symlinkSync("/usr/bin/python3", path.join(local, "python"));
  symlinkSync("/usr/bin/less", path.join(folder, "usr/bin/pager"));
}

/** As `update-ca-certificates`: one by one, found by the hash of their name, and all in a row. */
function listCertificates(folder) {
  const shared = path.join(folder, "usr/share/ca-certificates");
  const names = readdirSync(shared).flatMap((dir) => readdirSync(path.join(shared, dir)).map((file) => `${dir}/${file}`));
  const certificates = names.filter((name) => name.endsWith(".crt")).sort();
  const target = path.join(folder, "etc/ssl/certs");
  mkdirSync(target, { recursive: true });
  for (const name of certificates) {
    symlinkSync(`../../../usr/share/ca-certificates/${name}`, path.join(target, `${path.basename(name, ".crt")}.pem`));
  }
  capture(path.join(folder, "usr/bin/openssl"), ["rehash", target], { env: ownLibraries(folder) });
  const all = certificates.map((name) => readFileSync(path.join(shared, name), "utf8").trimEnd());
  writeFileSync(path.join(target, "ca-certificates.crt"), `${all.join("\n")}\n`);
  writeFileSync(path.join(folder, "etc/ca-certificates.conf"), `${certificates.join("\n")}\n`);
}

/** Without it every start of Python compiles what it imports, in every sandbox again. */
function compilePython(folder) {
  const lib = path.join(folder, "usr/lib");
  const version = readdirSync(lib).find((name) => /^python3\.\d+$/.test(name));
  const dirs = [version, "python3/dist-packages"].map((name) => path.join(lib, name)).filter((dir) => existsSync(dir));
  const env = { ...ownLibraries(folder), PYTHONHOME: path.join(folder, "usr"), PYTHONHASHSEED: "0" };
  capture(path.join(folder, "usr/bin", version), ["-m", "compileall", "-q", "-s", folder, "-p", "/", ...dirs], { env });
}

/** For starting one of the packages' programs where it lies. The machine runs the same distribution, whose libc it uses. */
function ownLibraries(folder) {
  const lib = path.join(folder, "usr/lib");
  const dirs = readdirSync(lib).filter((name) => name.endsWith("-linux-gnu") && lstatSync(path.join(lib, name)).isDirectory());
  return { ...process.env, LD_LIBRARY_PATH: dirs.map((name) => path.join(lib, name)).join(":") };
}
