// The empty disk that all disks of virtual machines start from: a sparse file with an ext4 file system, never changed.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync } from "node:fs";
import path from "node:path";
import { answers, capture, SetupError } from "../run.mjs";
import { ensurePart, hashOf } from "./parts.mjs";

/** Goes into the part's key: a change of what is done below makes it anew. */
const recipe = 1;
const gib = 16;

const options = [
  "-q",
  "-F",
  ["-b", "4096"],
  ["-I", "256"],
  // What makes it an ext4, whatever this machine's mke2fs.conf says. No journal: a machine that ends unasked takes its disk along, so it would
  // never be replayed.
  ["-O", "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"],
  // One file in 32 KiB at most. What describes files lies together at the start, where few clusters change, and is said to be zeroed: the
  // kernel of a machine would else write all of it.
  ["-i", "32768"],
  ["-G", "4096"],
  ["-m", "0"],
  ["-U", "c0de0000-0000-4000-8000-000000000000"],
  ["-E", "hash_seed=c0de0000-0000-4000-8000-000000000000,root_owner=0:0,packed_meta_blocks=1,num_backup_sb=0,lazy_itable_init=0"],
].flat();

/** @returns a note about it */
export function ensureDisk() {
  const command = mke2fs();
  const from = { recipe, gib, options, version: versionOf(command) };
  return ensurePart("disk", from, (work) => {
    const whole = path.join(work, "whole.ext4");
    // The same file whenever it is made.
    const env = { ...process.env, MKE2FS_CONFIG: "/dev/null", E2FSPROGS_FAKE_TIME: "1600000000" };
    capture(command, [...options, whole, `${gib}G`], { env });
    // Its zeroes have places on the disk, which the copy has not.
    const made = path.join(work, "disk.ext4");
    capture("cp", ["--sparse=always", whole, made]);
    chmodSync(made, 0o444);
    // Of what decides the content, not of 16 GiB of zeroes.
    const hash = hashOf(from);
    return { made, name: `disk-${hash.slice(0, 12)}.ext4`, record: { bytes: gib * 2 ** 30, hash } };
  });
}

function versionOf(command) {
  const { stderr } = spawnSync(command, ["-V"], { encoding: "utf8" });
  return /^mke2fs (\S+)/m.exec(stderr)?.[1];
}

/** It is not on every user's PATH. */
function mke2fs() {
  const found = ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"].find((command) =>
    path.isAbsolute(command) ? existsSync(command) : answers(command, ["-V"]),
  );
  if (found) return found;
  throw new SetupError("mke2fs is missing, which makes the machines' empty disk", "Install e2fsprogs.");
}
