/** Tries to get out of a sandbox, as root in it: each attempt is refused or stays inside, and the host is as it was. */

import { createHash } from "node:crypto";
import { chmodSync, existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import os from "node:os";
import path from "node:path";
import { toSandboxId } from "@mitos/protocol";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { findAssets } from "../../packages/engine/src/drivers/microvm/assets.ts";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { heldBytes } from "../support/held-memory.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const isRoot = process.getuid?.() === 0;
/** Then the kernel that the attempts are made at is the sandbox's own; what must hold is that nothing behind it is reached. */
const isVirtualMachine = engineUnderTest === "microvm";
const program = readFileSync(path.join(import.meta.dirname, "../fixtures/escape.py"));
const secretDir = mkdtempSync(path.join(os.tmpdir(), "mitos-escape-"));
const secret = path.join(secretDir, "secret");
/** Below /usr, of which every gVisor sandbox sees the host's, where only root can put a file of its own. A virtual machine has it from an image. */
const putsFile = isRoot && !isVirtualMachine;
const hostFile = putsFile ? `/usr/local/share/mitos-escape-${process.pid}` : "/usr/lib/os-release";
/** What of the host holds that file. */
let heldBy = hostFile;
const abstractName = `mitos-escape-${process.pid}`;

let live: LiveServer;
let neighbour: Sandbox;
let sandbox: Sandbox;
const listeners: Server[] = [];
/** Connections that reached the host. */
let reached = 0;
let before: ReturnType<typeof hostFacts>;
let contentBefore: string;
let results: Record<string, { refused?: string; reached?: true | { sees?: unknown; read?: string } }>;

beforeAll(async () => {
  writeFileSync(secret, "of the host");
  if (putsFile) {
    writeFileSync(hostFile, "of the host");
    chmodSync(hostFile, 0o644);
  }
  if (isVirtualMachine) heldBy = (await findAssets(await findGuest(undefined))).hostRoot.path;
  const port = await listen({ host: "0.0.0.0", port: 0 });
  await listen({ path: `\0${abstractName}` });
  await listen({ path: path.join(secretDir, "host.sock") });
  live = await startLiveServer();
  neighbour = await live.create();
  sandbox = await live.create();
  await sandbox.files.write("/workspace/escape.py", program);
  before = hostFacts();
  contentBefore = (await neighbour.exec(["cat", hostFile])).stdout;
  const address = Object.values(os.networkInterfaces())
    .flat()
    .find((one) => one?.family === "IPv4" && !one.internal)?.address;
  const host = {
    disk: diskNumbers(),
    // Of the last two a virtual machine's image has its own.
    paths: [secretDir, live.dataDir, import.meta.dirname, ...(isVirtualMachine ? [] : ["/root/.bashrc", "/etc/shadow"])],
    port,
    address: address ?? "192.0.2.1",
    abstract: abstractName,
    socket: path.join(secretDir, "host.sock"),
    file: hostFile,
  };
  const { stdout, stderr, exitCode } = await sandbox.exec(["python3", "/workspace/escape.py", JSON.stringify(host)], {
    timeoutSeconds: 90,
  });
  expect(exitCode, stderr).toBe(0);
  results = JSON.parse(stdout);
});
afterAll(async () => {
  rmSync(secretDir, { recursive: true });
  for (const listener of listeners) listener.close();
  if (putsFile) rmSync(hostFile);
  await live.close();
});

async function listen(options: { host?: string; port?: number; path?: string }): Promise<number> {
  const server = createServer((socket) => {
    reached += 1;
    socket.destroy();
  });
  listeners.push(server);
  await new Promise<void>((resolve) => server.listen(options, resolve));
  const address = server.address();
  return typeof address === "object" && address ? address.port : 0;
}

/** Major and minor number of a disk of the host, so that the attempt is at one that exists. */
function diskNumbers(): [number, number] {
  const name = existsSync("/sys/block") ? readdirSync("/sys/block")[0] : undefined;
  const text = name ? readFileSync(`/sys/block/${name}/dev`, "utf8") : "8:0";
  const [major, minor] = text.trim().split(":").map(Number);
  return [major ?? 8, minor ?? 0];
}

function sha256(file: string): string {
  return createHash("sha256").update(readFileSync(file)).digest("hex");
}

/** What an attempt that works would have changed. */
function hostFacts() {
  const { mode, uid, gid, mtimeMs, ino, nlink, size, ctimeMs } = lstatSync(heldBy);
  // The image of virtual machines is the other tests' as well: each server links it into its data directory, which changes both.
  const names = isVirtualMachine ? {} : { nlink, ctimeMs };
  const read = (file: string) => (existsSync(file) ? readFileSync(file, "utf8") : undefined);
  return {
    file: { mode, uid, gid, mtimeMs, ino, size, ...names, content: sha256(heldBy) },
    besideIt: readdirSync(path.dirname(heldBy)).sort(),
    sleep: statSync("/usr/bin/sleep").mtimeMs,
    hostname: os.hostname(),
    corePattern: read("/proc/sys/kernel/core_pattern"),
    modprobe: read("/proc/sys/kernel/modprobe"),
    mounts: read("/proc/self/mounts")
      ?.split("\n")
      .filter((line) => line.includes("/mnt")),
    modules: read("/proc/modules")?.split("\n").length,
    ownProcess: process.pid,
    secret: readFileSync(secret, "utf8"),
  };
}

/** Ports of the processor, which other architectures have not. */
const ofX86 = ["call_iopl", "call_ioperm"];
const refused = { refused: expect.stringMatching(/./) };
const staysInside = { reached: { sees: [] } };
/** runsc 20240729 lets root look at its agent, newer builds do not. */
const staysInsideOrRefused = expect.toBeOneOf([staysInside, refused]);
const changedHereOnly = { reached: { sees: "changed here" } };
/** In a virtual machine, which has such a thing; gVisor has not. */
const isThere = { refused: expect.stringMatching(/^(EACCES|EPERM|EROFS)$/) };
/** In a virtual machine, where the kernel is the sandbox's own and knows the call. */
const byItsOwnKernel = { reached: true };
/** In a virtual machine, which sees an image where gVisor's host template leaves out what is the host's. */
const ofItsImage = { reached: { sees: expect.anything() } };
/** chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot, mknod, audit_write, setfcap; in a virtual machine net_raw too */
const capabilities = (set: string) => ({ reached: { sees: `${set} ${set}` } });

describe("from inside, root", () => {
  it.each<[attempt: string, outcome: object, inAVirtualMachine?: object]>([
    ["mount_a_file_system", refused],
    ["mount_a_host_device", refused],
    ["mount_a_host_device_in_a_user_namespace", refused],
    ["bind_over_the_hosts_files_in_a_user_namespace", staysInside],
    ["unmount_proc", refused],
    ["change_the_root", refused],
    ["leave_a_chroot", staysInside],
    ["open_a_tree", refused],
    ["make_a_mount_by_the_new_calls", refused],
    ["enter_the_namespaces_of_process_1", refused],
    ["open_by_handle", refused],
    ["look_through_the_root_of_process_1", refused],
    ["press_sysrq", refused],
    ["set_the_core_pattern", refused],
    ["set_the_modprobe_path", refused],
    ["set_binfmt", refused],
    ["set_a_uevent_helper", refused],
    ["set_a_release_agent", refused],
    ["leave_the_cgroup", refused],
    ["read_kernel_memory", refused],
    ["read_memory_device", refused],
    ["open_port_device", refused],
    ["open_kvm", refused],
    ["open_fuse", refused],
    ["open_the_hosts_kernel_log", refused],
    ["open_a_loop_control", refused],
    ["read_the_hosts_shadow", refused, { reached: { read: expect.anything() } }],
    ["read_the_hosts_docker_socket", refused],
    ["make_and_read_a_block_device", refused],
    ["make_and_read_memory", refused],
    ["make_and_read_kernel_memory", refused],
    ["make_and_open_kvm", refused],
    ["open_a_disk_of_the_machine", refused, isThere],
    ["open_a_serial_port_of_the_machine", refused, isThere],
    ["open_a_channel_of_the_machine", refused, isThere],
    ["take_the_driver_from_a_device", refused, isThere],
    ["give_a_device_another_driver", refused, isThere],
    ["look_for_more_devices", refused, isThere],
    ["put_the_machine_to_sleep", refused, isThere],
    ["set_a_module_of_the_kernel", refused, isThere],
    ["live_on_without_memory", refused, isThere],
    ["trace_the_agent", refused],
    ["trace_the_agent_from_a_user_namespace", refused],
    ["seize_the_agent", refused],
    ["read_the_agents_memory_by_call", refused],
    ["open_the_agents_memory", refused],
    ["read_the_link", refused],
    ["write_the_link", refused],
    ["take_the_link", refused],
    ["open_the_agents_descriptors", staysInsideOrRefused, refused],
    ["find_descriptors_that_are_not_ours", staysInside],
    ["reach_the_hosts_loopback", refused],
    ["reach_the_hosts_loopback_by_another_address", refused],
    ["reach_the_host_by_its_address", refused],
    ["reach_the_hosts_loopback_v6", refused],
    ["reach_cloud_metadata", refused],
    ["reach_cloud_metadata_v6", refused],
    ["reach_the_internet", refused],
    ["reach_the_internet_v6", refused],
    ["reach_an_abstract_socket_of_the_host", refused],
    ["reach_a_unix_socket_of_the_host", refused],
    ["reach_docker", refused],
    ["reach_the_host_by_vsock", refused],
    ["open_a_raw_socket", refused, byItsOwnKernel],
    ["open_a_packet_socket", refused, byItsOwnKernel],
    ["send_to_the_internet_by_udp", refused],
    ["find_network_devices", { reached: { sees: ["lo"] } }],
    ["call_init_module", refused],
    ["call_finit_module", refused],
    ["call_delete_module", refused],
    ["call_bpf", refused],
    ["call_userfaultfd", refused],
    ["call_io_uring_setup", refused, byItsOwnKernel],
    ["call_add_key", refused, byItsOwnKernel],
    ["call_keyctl", refused, byItsOwnKernel],
    ["call_kexec_load", refused],
    ["call_swapon", refused],
    ["call_acct", refused],
    ["call_perf_event_open", refused],
    ["call_quotactl", refused],
    ["call_lookup_dcookie", refused],
    ["call_reboot", refused],
    ["call_clock_settime", refused],
    ["rename_the_host", refused],
    ["rename_the_host_in_a_user_namespace", { reached: { sees: "pwned" } }],
    ["gain_capabilities", capabilities("00000000a80405fb"), capabilities("00000000a80425fb")],
    ["see_processes_of_the_host", staysInside],
    ["see_files_of_the_host", staysInside],
    ["list_folders_of_the_host", { reached: { sees: {} } }, ofItsImage],
    ["overwrite_a_file_of_the_host", changedHereOnly],
    ["append_to_a_file_of_the_host", changedHereOnly],
    ["truncate_a_file_of_the_host", changedHereOnly],
    ["set_the_mode_of_a_file_of_the_host", changedHereOnly],
    ["set_the_owner_of_a_file_of_the_host", changedHereOnly],
    ["set_the_times_of_a_file_of_the_host", changedHereOnly],
    ["set_an_attribute_of_a_file_of_the_host", changedHereOnly],
    ["link_a_file_of_the_host", changedHereOnly],
    ["rename_a_file_of_the_host", changedHereOnly],
    ["replace_a_file_of_the_host", changedHereOnly],
    ["remove_a_file_of_the_host", changedHereOnly],
    ["make_a_file_beside_it", changedHereOnly],
    ["overwrite_a_program_that_runs", changedHereOnly],
  ])("may try to %s", (attempt, outcome, inAVirtualMachine = outcome) => {
    expect(results[attempt]).toEqual(isVirtualMachine ? inAVirtualMachine : outcome);
  });

  it.runIf(process.arch === "x64").each(ofX86)("may try to %s", (attempt) => {
    expect(results[attempt]).toEqual(refused);
  });

  it("has tried nothing else", () => {
    const notInTheTable = [...ofX86, "read_the_agents_environment"];
    const rows = Object.entries(results).filter(([name]) => !notInTheTable.includes(name));
    expect(rows.every(([, result]) => result.refused || result.reached)).toBe(true);
    expect(rows).toHaveLength(102);
  });

  it("finds nothing of the host in the agent's environment", () => {
    const read = JSON.stringify(results.read_the_agents_environment);
    expect(read).toMatch(isVirtualMachine ? /^{"refused"/ : /^{"(reached|refused)"/);
    for (const known of [live.dataDir, os.hostname(), os.homedir() === "/root" ? secretDir : os.homedir()])
      expect(read).not.toContain(known);
  });

  it("leaves the host, its files and the neighbour as they were", async () => {
    expect(hostFacts()).toEqual(before);
    expect(reached).toBe(0);
    expect((await neighbour.exec(["cat", hostFile])).stdout).toBe(contentBefore);
    expect(contentBefore).not.toBe("");
    expect((await neighbour.exec("sleep 0; hostname")).stdout.trim()).toBe(neighbour.id);
    expect((await sandbox.exec("echo alive")).stdout).toBe("alive\n");
  });

  it("cannot signal its own agent where that is process 1 of a kernel", async ({ skip }) => {
    skip(!isVirtualMachine, "not run on gvisor: there a program can end the agent, as the next test does");
    const own = await live.create();
    await own.exec(["python3", "-c", "import os, signal\nfor number in signal.valid_signals() - {signal.SIGCHLD}: os.kill(1, number)"]);
    expect((await own.exec("echo alive")).stdout).toBe("alive\n");
    expect(live.engine.get(toSandboxId(own.id)).state).toBe("running");
    await own.terminate();
  });

  it("cannot take away from its own agent what that may use, as root's programs could whose ids are the same", async ({ skip }) => {
    skip(!isVirtualMachine, "not run on gvisor: there a program can end the agent, as the next test does");
    const narrow = `
import resource
for name in (name for name in dir(resource) if name.startswith("RLIMIT_")):
    limit = getattr(resource, name)
    try: print(name, resource.prlimit(1, limit, resource.prlimit(0, limit)))
    except PermissionError: pass
`;
    const { stdout, exitCode } = await sandbox.exec(["python3", "-c", narrow]);
    expect({ stdout, exitCode }).toEqual({ stdout: "", exitCode: 0 });
  });

  it("can break its own agent, which ends that sandbox alone and says so", async ({ skip }) => {
    skip(isVirtualMachine, "not run on microvm: no signal of a program reaches process 1 of a kernel, as the test before shows");
    const { path: guest, hash } = await findGuest(undefined);
    const own = await live.create();
    await own.exec(["python3", "-c", "import os; os.kill(1, 9)"]).catch(() => undefined);
    const record = () => live.engine.list().find(({ id }) => id === own.id);
    await until("it has failed", () => record()?.state === "failed");
    expect(record()?.endReason).toBe("exited: its first process was killed from inside by signal 9");
    await own.terminate();
    expect(sha256(guest)).toBe(hash);
    expect((await neighbour.exec("echo alive")).stdout).toBe("alive\n");
  });
});

describe("a file that a program has prepared for the server", () => {
  const never = [
    "/proc/self/fd/0",
    "/proc/1/fd/0",
    "/proc/1/fd/1",
    "/dev/stdin",
    "/dev/zero",
    "/workspace/fifo",
    "/workspace/device",
    "/workspace/socket",
  ];

  beforeAll(async () => {
    const prepare = `
import os, socket
os.chdir("/workspace")
os.mkfifo("fifo")
os.mknod("device", 0o20600, os.makedev(1, 5))
socket.socket(socket.AF_UNIX).bind("socket")
os.symlink("/proc/self/fd/0", "to-the-link")
os.symlink("${secret}", "to-the-host")
os.symlink("loop", "loop")
os.makedirs("odd")
for name in (b"line\\nbreak", b"not \\xff text", b"-rf", b"..."): open(os.path.join(b"odd", name), "w").close()
with open("huge", "wb") as file: file.truncate(1 << 42)
`;
    const { exitCode, stderr } = await sandbox.exec(["python3", "-c", prepare]);
    expect(exitCode, stderr).toBe(0);
  });

  it.each([...never, "/workspace/to-the-link"])("is not read when it is %s", async (file) => {
    await expect(sandbox.files.readBytes(file)).rejects.toMatchObject({ code: "invalid_input" });
  });

  it.each([...never, "/workspace/to-the-link"])("is not written through when it is %s", async (file) => {
    const failed = await sandbox.files.write(file, "x").then(
      () => undefined,
      (error: { code: string }) => error.code,
    );
    // What lies in an ordinary folder may be replaced by a file; nothing is ever written into it.
    if (!file.startsWith("/workspace/")) expect(failed).toMatch(/^(invalid_input|file_failed|not_found|permission_denied|forbidden)$/);
    expect((await sandbox.exec("echo alive")).stdout).toBe("alive\n");
  });

  it.each(["to-the-host", "loop", `../../../../../../../..${secret}`, "../..".repeat(40)])(
    "leads nowhere on the host: %s",
    async (name) => {
      await expect(sandbox.files.readBytes(`/workspace/${name}`)).rejects.toMatchObject({ code: expect.stringMatching(/./) });
      expect(readFileSync(secret, "utf8")).toBe("of the host");
    },
  );

  it("may be sparse and larger than any memory: it is refused or can be left", async () => {
    const held = heldBytes();
    const answer = await fetch(`${live.url}/v1/sandboxes/${sandbox.id}/files?path=/workspace/huge`, {
      headers: { Connection: "close" },
      signal: AbortSignal.timeout(5_000),
    }).catch(() => undefined);
    await answer?.body?.cancel();
    expect(heldBytes() - held).toBeLessThan(128 * 1024 * 1024);
    expect((await sandbox.exec("rm /workspace/huge; echo alive")).stdout).toBe("alive\n");
  });

  it("may have any name: a folder of them can be listed", async () => {
    expect(await sandbox.files.list("/workspace/odd")).toHaveLength(4);
  });
});

it("a program of another user stays that user", async () => {
  const command =
    "id -u; /tmp/as-root -u; grep -h Cap[PE] /proc/self/status; python3 -c 'import os; os.setuid(0)' 2>&1 | tail -1; cat /root/.x 2>&1; kill -0 1 2>&1";
  // On gVisor a set-user-ID bit gives nothing: programs run as with no_new_privs.
  await sandbox.exec("cp /usr/bin/id /tmp/as-root && chmod 4755 /tmp/as-root");
  const { stdout } = await sandbox.exec(command, { user: "nobody" });
  const [uid, uidBySetUid, permitted, effective, setuid, ...rest] = stdout.split("\n");
  expect({ uid, uidBySetUid, permitted, effective, setuid }).toEqual({
    uid: "65534",
    // A virtual machine's kernel is the sandbox's own: there root may give itself to others.
    uidBySetUid: isVirtualMachine ? "0" : "65534",
    permitted: "CapPrm:\t0000000000000000",
    effective: "CapEff:\t0000000000000000",
    setuid: "PermissionError: [Errno 1] Operation not permitted",
  });
  expect(rest.join("\n")).toMatch(/Permission denied[\s\S]*not permitted/i);
});
