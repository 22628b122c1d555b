/**
 * A strict stand-in for Firecracker's jailer (docs/jailer.md of that project): its command line, the folder it makes, the pid that it leaves. In place
 * of a root directory, a user and a namespace it tells the stand-in for Firecracker, which then keeps to them.
 */
import { spawn } from "node:child_process";
import { chmodSync, chownSync, copyFileSync, existsSync, mkdirSync, realpathSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";

const args = process.argv.slice(2);
if (args[0] === "--version") {
  process.stdout.write("Jailer v1.15.0\n");
  process.exit(0);
}
if (process.getuid?.() !== 0) fail("it needs root");
const { options, flags, rest } = readArguments();
const id = required("id");
if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) fail(`Invalid instance ID: ${id}`);
const program = realpathSync(required("exec-file"));
const name = path.basename(program);
if (!statSync(program).isFile() || !name.includes("firecracker")) fail(`Invalid filename: it does not contain "firecracker": ${name}`);
const base = realpathSync(options.get("chroot-base-dir") ?? "/srv/jailer");
const [uid, gid] = [Number(required("uid")), Number(required("gid"))];
if (!Number.isInteger(uid) || !Number.isInteger(gid)) fail("Invalid uid or gid");
if (!["1", "2"].includes(options.get("cgroup-version") ?? "1")) fail("Invalid cgroup version");
if (!flags.has("new-pid-ns")) fail("the stand-in only starts a VMM in a pid namespace of its own");

const root = path.join(base, name, id, "root");
mkdirSync(root, { recursive: true });
copyFileSync(program, path.join(root, name));
chmodSync(root, 0o700);
chownSync(root, uid, gid);
const pidFile = path.join(root, `${name}.pid`);
if (existsSync(pidFile)) fail(`Failed to open file ${pidFile}: File exists`);
const child = spawn(path.join(root, name), ["--id", id, "--start-time-us", "1", "--start-time-cpu-us", "1", ...rest], {
  cwd: root,
  env: { FAKE_JAIL: root, FAKE_UID: String(uid) },
  detached: true,
  stdio: "inherit",
});
writeFileSync(pidFile, String(child.pid));
child.unref();

function readArguments() {
  const options = new Map<string, string>();
  const flags = new Set<string>();
  const end = args.indexOf("--");
  const own = end < 0 ? args : args.slice(0, end);
  for (let at = 0; at < own.length; at += 1) {
    const name = own[at]!.replace(/^--/, "");
    if (["daemonize", "new-pid-ns"].includes(name)) flags.add(name);
    else if (["id", "exec-file", "uid", "gid", "chroot-base-dir", "cgroup-version", "parent-cgroup", "netns"].includes(name)) {
      at += 1;
      if (own[at] === undefined || options.has(name)) fail(`--${name} needs one value`);
      options.set(name, own[at]!);
    } else fail(`Found argument '${own[at]}' which wasn't expected, or isn't valid in this context.`);
  }
  return { options, flags, rest: end < 0 ? [] : args.slice(end + 1) };
}

function required(name: string): string {
  return options.get(name) ?? fail(`The following required arguments were not provided: --${name}`);
}

function fail(message: string): never {
  process.stderr.write(`Error: ${message}\n`);
  process.exit(1);
}
