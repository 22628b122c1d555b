import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, it } from "vitest";
import { parse } from "./fake/api.ts";

const drive = { drive_id: "disk", path_on_host: "disk", is_read_only: false, is_root_device: false };
const bootArguments = "mitos.link=vsock:53 mitos.disk=/dev/vda rdinit=/agent boot";

it.each([
  ["PUT", "/unknown", {}, "Invalid request method and/or path"],
  ["GET", "/vm", {}, "Invalid request method and/or path"],
  ["PATCH", "/boot-source", { kernel_image_path: "kernel" }, "Invalid request method and/or path"],
  ["PUT", "/boot-source", { boot_args: "quiet" }, "missing field `kernel_image_path`"],
  ["PUT", "/boot-source", { kernel_image_path: "kernel", initrd: "x" }, "unknown field `initrd`"],
  ["PUT", "/machine-config", { vcpu_count: 33, mem_size_mib: 64 }, "invalid: 33"],
  ["PUT", "/machine-config", { vcpu_count: 1.5, mem_size_mib: 64 }, "expected a integer"],
  ["PUT", "/machine-config", { vcpu_count: 1 }, "missing field `mem_size_mib`"],
  ["PUT", "/drives/other", drive, "does not match"],
  ["PUT", "/drives/a-b", { ...drive, drive_id: "a-b" }, "alphanumeric characters and underscores"],
  ["PUT", "/drives/", drive, "cannot be empty"],
  ["PUT", "/drives/disk", { ...drive, is_read_only: undefined }, "missing field `is_read_only`"],
  ["PATCH", "/drives/disk", { drive_id: "disk", is_read_only: true }, "unknown field `is_read_only`"],
  ["PUT", "/vsock", { guest_cid: 2, uds_path: "v" }, "invalid: 2"],
  ["PUT", "/actions", { action_type: "Start" }, "unknown variant `Start`"],
  ["PATCH", "/vm", { state: "Running" }, "unknown variant `Running`"],
  ["PUT", "/snapshot/create", { snapshot_path: "s" }, "missing field `mem_file_path`"],
  ["PUT", "/snapshot/create", { snapshot_path: "s", mem_file_path: "m", version: "1" }, "unknown field `version`"],
  ["PUT", "/snapshot/load", { snapshot_path: "s", mem_backend: { backend_path: "m" } }, "missing field `backend_type`"],
])("the stand-in refuses %s %s %j", (method, url, body, message) => {
  expect(() => parse(method, url, JSON.stringify(body))).toThrow(message);
});

it("the stand-in refuses calls in the wrong state, and ends when a snapshot cannot be loaded", async () => {
  const dir = await mkdtemp(path.join(tmpdir(), "mitos-fake-"));
  const program = path.join(import.meta.dirname, "fake/firecracker.ts");
  const start = () => spawn(process.execPath, [program, "--id", "a", "--api-sock", "api"], { cwd: dir, stdio: "ignore" });
  const call = async (method: string, url: string, body: object, headers: Record<string, string> = {}) => {
    const text = JSON.stringify(body);
    const length = headers["transfer-encoding"] ? {} : { "content-length": Buffer.byteLength(text) };
    const asked = request({ socketPath: path.join(dir, "api"), method, path: url, headers: { ...length, ...headers } });
    asked.end(text);
    const [response] = await once(asked, "response");
    let answer = "";
    for await (const chunk of response) answer += chunk;
    return response.statusCode === 204 ? "done" : (JSON.parse(answer) as { fault_message: string }).fault_message;
  };
  // The socket's file is there a little earlier.
  const isListening = async () => {
    const socket = connect(path.join(dir, "api"));
    try {
      await once(socket, "connect");
      return true;
    } catch {
      return false;
    } finally {
      socket.destroy();
    }
  };
  const files = ["kernel", "disk"];
  for (const name of files) await writeFile(path.join(dir, name), name);
  const save = { snapshot_path: "state", mem_file_path: "memory" };
  const load = { snapshot_path: "state", mem_backend: { backend_type: "File", backend_path: "memory" } };
  const first = start();
  try {
    await expect.poll(isListening).toBe(true);
    expect(await call("PATCH", "/vm", { state: "Paused" })).toContain("before starting");
    expect(await call("PUT", "/snapshot/create", save)).toContain("before starting");
    expect(await call("PATCH", "/drives/disk", { drive_id: "disk" })).toContain("before starting");
    expect(await call("PUT", "/actions", { action_type: "InstanceStart" })).toContain("without kernel");
    expect(await call("PUT", "/snapshot/load", load)).toContain("not allowed after configuring");
    expect(await call("PUT", "/boot-source", { kernel_image_path: "absent" })).toContain("absent");
    expect(await call("PUT", "/boot-source", { kernel_image_path: "kernel", boot_args: bootArguments })).toBe("done");
    expect(await call("PUT", "/drives/disk", drive, { "transfer-encoding": "chunked" })).toContain("Transfer-Encoding");
    expect(await call("PUT", "/drives/disk", { ...drive, is_root_device: true })).toBe("done");
    expect(await call("PUT", "/drives/two", { ...drive, drive_id: "two", is_root_device: true })).toContain("root block device");
    expect(await call("PUT", "/vsock", { guest_cid: 3, uds_path: "v.sock" })).toBe("done");
    expect(await call("PUT", "/actions", { action_type: "InstanceStart" })).toBe("done");
    expect(await call("PUT", "/entropy", {})).toContain("after starting");
    expect(await call("PUT", "/snapshot/load", load)).toContain("after starting");
    expect(await call("PUT", "/snapshot/create", save)).toContain("running microVM");
    for (const state of ["Paused", "Paused"]) expect(await call("PATCH", "/vm", { state })).toBe("done");
    expect(await call("PUT", "/snapshot/create", { ...save, snapshot_type: "Diff" })).toContain("track_dirty_pages");
    expect(await call("PUT", "/snapshot/create", save)).toBe("done");
    expect(await call("PATCH", "/drives/other", { drive_id: "other", path_on_host: "disk" })).toContain("Invalid block device ID");
  } finally {
    first.kill("SIGKILL");
    await once(first, "close");
  }
  await rm(path.join(dir, "api"));
  const second = start();
  const closed = once(second, "close");
  try {
    await expect.poll(isListening).toBe(true);
    // In the folder of the machine that was saved, whose socket is still there.
    expect(await call("PUT", "/snapshot/load", load)).toContain("Address in use");
    expect(await closed).toEqual([1, null]);
  } finally {
    second.kill("SIGKILL");
    await rm(dir, { recursive: true, force: true });
  }
});
