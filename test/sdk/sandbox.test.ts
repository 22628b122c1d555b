import { Sandbox, SandboxServer } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

// The SDK against the real engine, over HTTP.
let live: LiveServer;
let sandbox: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
});
afterAll(() => live.close());

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

describe("exec", () => {
  it("runs a line, a list, and a list of one, in a folder and with variables of its own", async () => {
    expect(await sandbox.exec("echo out; echo err >&2; exit 3")).toMatchObject({ exitCode: 3, stdout: "out\n", stderr: "err\n" });
    expect((await sandbox.exec(["printf", "%s|", "a b", "$HOME"])).stdout).toBe("a b|$HOME|");
    expect((await sandbox.exec(["pwd"], { cwd: "/tmp" })).stdout).toBe("/tmp\n");
    expect((await sandbox.exec("echo $K", { env: { K: "v w" } })).stdout).toBe("v w\n");
  });

  it("runs as another user", async () => {
    expect((await sandbox.exec("id -un", { user: "nobody" })).stdout).toBe("nobody\n");
  });

  it.each([{}, { user: "nobody" }])("kills at the time-out, with %j", async (options) => {
    await expect(sandbox.exec("sleep 30", { timeoutSeconds: 1, ...options })).rejects.toMatchObject({ code: "exec_timeout" });
  });

  it("is killed when its signal fires", async () => {
    const controller = new AbortController();
    const work = sandbox.exec("echo started; exec sleep 4242", { signal: controller.signal, onStdout: () => controller.abort() });
    await expect(work).rejects.toMatchObject({ code: "canceled" });
    await expect.poll(async () => (await sandbox.exec("pgrep -f 'sleep 424[2]' || true")).stdout).toBe("");
  });
});

describe("files", () => {
  it("carry bytes of any kind and size both ways", async () => {
    const small = Uint8Array.from({ length: 256 }, (_, value) => value);
    await sandbox.files.write("/workspace/deep/small", small, { mode: 0o600 });
    expect(await sandbox.files.readBytes("/workspace/deep/small")).toEqual(small);
    expect((await sandbox.files.stat("/workspace/deep/small")).mode & 0o777).toBe(0o600);
    const large = new Uint8Array(5 * 1024 * 1024).map((_, index) => (index * 31) & 255);
    await sandbox.files.write("/workspace/large", new Blob([large]).stream());
    const back = new Uint8Array(await new Response(await sandbox.files.readStream("/workspace/large")).arrayBuffer());
    expect(Buffer.from(back).equals(Buffer.from(large))).toBe(true);
    const part = await new Response(await sandbox.files.readStream("/workspace/large", { offset: 1_000_000, length: 5 })).arrayBuffer();
    expect(new Uint8Array(part)).toEqual(large.subarray(1_000_000, 1_000_005));
  });

  it("are read in parts, also those that are empty or say so", async () => {
    await sandbox.files.write("/workspace/empty", "");
    const read = async (path: string, length: number) => new Response(await sandbox.files.readStream(path, { length })).text();
    expect(await read("/workspace/empty", 10)).toBe("");
    expect(await read("/workspace/large", 0)).toBe("");
    expect(await read("/proc/version", 5)).toBe("Linux");
    await expect(read("/workspace/missing", 0)).rejects.toMatchObject({ code: "not_found" });
  });

  it("are written several at once, from text, bytes, a blob and a stream", async () => {
    const content = [
      "text",
      Buffer.from("bytes"),
      new TextEncoder().encode("buffer").buffer,
      new Blob(["blob"]),
      new Blob(["stream"]).stream(),
    ];
    const files = content.map((one, index) => ({ path: `/workspace/many/${index}`, content: one }));
    await sandbox.files.writeAll([...files, { path: "/workspace/many/own", content: "", mode: 0o700 }], { mode: 0o640 });
    expect((await sandbox.exec("cd many && for f in 0 1 2 3 4; do cat $f; echo; done")).stdout).toBe("text\nbytes\nbuffer\nblob\nstream\n");
    expect((await sandbox.exec("stat -c %a many/0 many/own")).stdout).toBe("640\n700\n");
    const broken = sandbox.files.writeAll(["many/before", "many/0/x", "many/after"].map((path) => ({ path, content: "x" })));
    await expect(broken).rejects.toMatchObject({ status: expect.any(Number) });
    expect([await sandbox.files.exists("many/before"), await sandbox.files.exists("many/after")]).toEqual([true, false]);
  });

  it("are renamed as rename(2) does it", async () => {
    const { files } = sandbox;
    await files.writeAll(["renames/a", "renames/b", "renames/full/x", "renames/tree/y"].map((path) => ({ path, content: path })));
    await files.mkdir("renames/empty");
    await files.rename("renames/a", "renames/b");
    expect([await files.exists("renames/a"), await files.read("renames/b")]).toEqual([false, "renames/a"]);
    await files.rename("renames/tree", "/workspace/renames/empty");
    expect(await files.read("renames/empty/y")).toBe("renames/tree/y");
    for (const [from, to, code, cause] of [
      ["renames/a", "renames/c", "not_found", "rename /workspace/renames/a to /workspace/renames/c"],
      ["renames/b", "renames/no/folder", "not_found", "rename"],
      ["renames/empty", "renames/full", "already_exists", "rename"],
      ["renames/b", "renames/full", "invalid_input", "rename"],
      ["renames/full", "renames/b", "invalid_input", "rename"],
      ["renames/full", "renames/full/itself", "invalid_input", "rename"],
      ["renames/b", "/dev/shm/b", "failed_precondition", "different file systems"],
      ["", "renames/c", "invalid_input", "from"],
      ["renames/b", "a\0b", "invalid_input", "to"],
    ] as const) {
      const refused = { code, errorCause: expect.stringContaining(cause), remediation: expect.stringMatching(/./) };
      await expect(files.rename(from, to), `${from} to ${to}`).rejects.toMatchObject(refused);
    }
    expect(await files.read("renames/b")).toBe("renames/a");
  });

  it("are listed, tested and removed", async () => {
    await sandbox.files.mkdir("/workspace/a/b");
    await sandbox.files.write("/workspace/a/f", "x");
    expect((await sandbox.files.list("/workspace/a")).map(({ name, isDir }) => [name, isDir]).sort()).toEqual([
      ["b", true],
      ["f", false],
    ]);
    expect(await sandbox.files.exists("/workspace/a/f")).toBe(true);
    await sandbox.files.remove("/workspace/a");
    expect(await sandbox.files.exists("/workspace/a/f")).toBe(false);
    await expect(sandbox.files.read("/workspace/a/f")).rejects.toMatchObject({ code: "not_found", status: 404 });
  });
});

describe("runCode", () => {
  it("keeps its state, streams output, and gives errors as results", async () => {
    await sandbox.runCode("x = 41");
    const seen: string[] = [];
    const execution = await sandbox.runCode("print('hi')\nx + 1", { onStdout: (chunk) => seen.push(chunk) });
    expect(execution).toMatchObject({ text: "42", error: null });
    expect(seen.join("")).toBe("hi\n");
    expect((await sandbox.runCode("1/0")).error).toMatchObject({ name: "ZeroDivisionError" });
  });
});

describe("processes", () => {
  it("run on in the background, and are read again from any offset", async () => {
    const background = sandbox.execBackground("printf abc; read line; echo $line; exit 5", { stdin: true });
    await background.writeStdin("go\n", { close: true });
    expect(await background.wait()).toMatchObject({ exitCode: 5, stdout: "abcgo\n" });
    const pid = await background.started;
    const again: string[] = [];
    for await (const event of sandbox.connectProcess(pid).output({ stdoutFrom: 2 }))
      if (event.type === "stdout") again.push(text(event.data));
    expect(again.join("")).toBe("cgo\n");
    expect(await sandbox.processes()).toContainEqual(expect.objectContaining({ pid, state: "exited", exitCode: 5, stdoutBytes: 6 }));
  });

  it("are killed with their group", async () => {
    const background = sandbox.execBackground("sleep 777 & wait");
    await background.started;
    await background.kill();
    expect((await background.wait()).exitCode).not.toBe(0);
    await expect.poll(async () => (await sandbox.exec("pgrep -f 'sleep 77[7]' || true")).stdout).toBe("");
  });
});

describe("a terminal", () => {
  it("is a real one: size, resize, order of keys, exit code", async () => {
    let seen = "";
    const pty = await sandbox.createPty((data) => (seen += text(data)), { cols: 91, rows: 31 });
    await pty.sendInput("stty size; test -t 0 && echo is-a-tty\n");
    await expect.poll(() => seen).toMatch(/31 91\r\nis-a-tty/);
    await pty.resize(120, 40);
    for (const key of "stty size; exit 7\n") void pty.sendInput(key);
    expect(await pty.wait()).toBe(7);
    expect(seen).toContain("40 120\r\n");
  });

  it("lives on in a fork's child, with its shell's variables, and is connected to by pid and offset", async () => {
    let seen = "";
    const pty = await sandbox.createPty((data) => (seen += text(data)));
    await pty.sendInput("v=inherited; echo ready-$((40 + 2))\n");
    await expect.poll(() => seen).toContain("ready-42");
    const [child] = await sandbox.fork();
    let inChild = "";
    const again = child!.connectPty(pty.pid, (data) => (inChild += text(data)), { offset: pty.offset });
    await again.sendInput("echo [$v]; exit\n");
    expect(await again.wait()).toBe(0);
    expect(inChild).toContain("[inherited]");
    await pty.sendInput("echo [still-$v]; exit\n");
    expect(await pty.wait()).toBe(0);
    expect(seen).toContain("[still-inherited]");
    await child!.terminate();
  });
});

it("creates at once from a template that is not there yet all succeed", async () => {
  const sandboxes = await Promise.all(Array.from({ length: 4 }, () => live.create({ template: "base" })));
  expect(new Set(sandboxes.map(({ id }) => id)).size).toBe(4);
  const templates = await new SandboxServer(live.url).listTemplates();
  expect(templates.filter(({ id }) => id === "base")).toMatchObject([{ ready: true }]);
  await Promise.all(sandboxes.map((each) => each.terminate()));
});

describe("the life of a sandbox", () => {
  it("goes from create to fork, tree, pause, resume and terminate", async () => {
    const parent = await live.create({ metadata: { team: "a" }, timeoutSeconds: 600, env: { K: "V" } });
    await parent.files.write("/workspace/f", "kept");
    const children = await parent.fork(3);
    expect(children.pausedMs).toBeGreaterThan(0);
    expect(await parent.info()).toMatchObject({ state: "running", metadata: { team: "a" }, deadlineUnix: expect.any(Number) });
    expect((await parent.tree()).children.map(({ id }) => id).sort()).toEqual(children.map(({ id }) => id).sort());
    expect((await children[0]!.exec("echo $K; cat /workspace/f")).stdout).toBe("V\nkept");
    await children[0]!.pause();
    await expect(children[0]!.exec("true")).rejects.toMatchObject({ code: "sandbox_not_running" });
    await children[0]!.resume();
    expect(await children[0]!.files.read("/workspace/f")).toBe("kept");
    const listed = await Sandbox.list({ baseUrl: live.url });
    expect(listed.map(({ id }) => id)).toEqual(expect.arrayContaining([parent.id, ...children.map(({ id }) => id)]));
    await parent.terminate({ subtree: true });
    await expect(Sandbox.connect(children[2]!.id, { baseUrl: live.url })).rejects.toMatchObject({ code: "idle_timeout", status: 410 });
  });
});
