/** The vectors of the guest, through the Connect service with both of its encodings, in a real sandbox. */

import { Agent, request as httpRequest } from "node:http";
import http2 from "node:http2";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, createClient } from "@connectrpc/connect";
import { createWritableIterable } from "@connectrpc/connect/protocol";
import { createConnectTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { envelope } from "../../packages/server/src/testing/harness.ts";
import { patience } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { tarOf } from "../support/tar.ts";
import { until } from "../support/until.ts";

type Frame = MessageInitShape<typeof pb.FrameSchema>;
type Rpc = Client<typeof pb.Sandbox>;

let live: LiveServer;
let sandbox: Sandbox;
let sessions: Http2SessionManager;
const rpcs = {} as { json: Rpc; binary: Rpc };

beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
  sessions = new Http2SessionManager(live.url);
  for (const encoding of ["json", "binary"] as const) {
    const transport = createConnectTransport({
      baseUrl: live.url,
      httpVersion: "2",
      sessionManager: sessions,
      useBinaryFormat: encoding === "binary",
      interceptors: [
        (next) => (request) => {
          request.header.set("X-Sandbox-Id", sandbox.id);
          return next(request);
        },
      ],
    });
    rpcs[encoding] = createClient(pb.Sandbox, transport);
  }
});

afterAll(async () => {
  sessions?.abort();
  await live?.close();
});

interface Outcome {
  stdout: string;
  stderr: string;
  exit: pb.ExecExit | undefined;
}

async function outcome(answers: AsyncIterable<pb.ExecResponse>): Promise<Outcome> {
  const all: Outcome = { stdout: "", stderr: "", exit: undefined };
  for await (const { msg } of answers) {
    if (msg.case === "exit") all.exit = msg.value;
    else if (msg.case) all[msg.case] += Buffer.from(msg.value).toString("latin1");
  }
  return all;
}

interface Cell {
  stdout: string;
  text: string;
  data: Record<string, string>;
  error: pb.RunError | undefined;
  exitCode: number | undefined;
}

async function cell(answers: AsyncIterable<pb.RunCodeResponse>): Promise<Cell> {
  const all: Cell = { stdout: "", text: "", data: {}, error: undefined, exitCode: undefined };
  for await (const { msg } of answers) {
    if (msg.case === "stdout") all.stdout += Buffer.from(msg.value).toString();
    else if (msg.case === "error") all.error = msg.value;
    else if (msg.case === "exitCode") all.exitCode = msg.value;
    else if (msg.case === "result") {
      all.text = msg.value.text;
      all.data = Object.fromEntries(Object.entries(msg.value.data).map(([mime, value]) => [mime, Buffer.from(value).toString()]));
    }
  }
  return all;
}

async function gather<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

async function* each<T>(...items: T[]): AsyncGenerator<T> {
  yield* items;
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text));
/** What both doors take. */
type Plain = { command: string; args?: string[]; cwd?: string; timeoutSeconds?: number };
type ExecOpen = MessageInitShape<typeof pb.ExecOpenSchema>;
type ExecRequest = MessageInitShape<typeof pb.ExecRequestSchema>;
const open = (value: ExecOpen): ExecRequest => ({ msg: { case: "open" as const, value } });
const stdin = (text: string): ExecRequest => ({ msg: { case: "stdin" as const, value: bytes(text) } });
const fails = (code: Code) => ({ code, rawMessage: expect.stringMatching(/./) });

for (const encoding of ["json", "binary"] as const) {
  const at = (name: string) => `/workspace/${encoding}/${name}`;
  let rpc: Rpc;
  beforeAll(() => {
    rpc = rpcs[encoding];
  });

  const write = (path: string, content: string, mode = 0) =>
    rpc.writeFile(each({ msg: { case: "open", value: { path, mode } } }, { msg: { case: "data", value: bytes(content) } }));
  const read = async (path: string) => Buffer.concat((await gather(rpc.readFile({ path }))).map(({ data }) => data)).toString();

  describe(`files (${encoding})`, () => {
    it("Stat tells what a path is", async () => {
      expect(await rpc.stat({ path: "/" })).toMatchObject({ isDir: true, path: "/" });
      expect(await rpc.stat({ path: "/tmp" })).toMatchObject({ isDir: true, path: "/tmp", name: "tmp" });
      await expect(rpc.stat({ path: at("missing") })).rejects.toMatchObject(fails(Code.NotFound));
    });

    it("WriteFile makes the way to a file and ReadFile gives it back", async () => {
      expect((await write(at("a/b/hello"), "hello world")).bytesWritten).toBe(11n);
      expect(await read(at("a/b/hello"))).toBe("hello world");
      expect((await rpc.stat({ path: at("a/b/hello") })).mode).toBe(0o100644);
    });

    it("WriteFile gives a new file the mode that was asked for", async () => {
      await write(at("private"), "x", 0o600);
      expect((await rpc.stat({ path: at("private") })).mode & 0o777).toBe(0o600);
    });

    it("an empty file is one chunk that is the last", async () => {
      await rpc.writeFile(each({ msg: { case: "open", value: { path: at("empty") } } }));
      expect(await gather(rpc.readFile({ path: at("empty") }))).toMatchObject([{ eof: true, data: bytes("") }]);
    });

    it("Mkdir makes folders that List shows", async () => {
      await rpc.mkdir({ path: at("folders/new") });
      await rpc.mkdir({ path: at("folders/new") });
      const { entries } = await rpc.list({ parent: at("folders") });
      expect(entries).toMatchObject([{ name: "new", path: at("folders/new"), isDir: true, mode: 0o40755 }]);
      expect(Math.abs(Number(entries[0]!.modifiedAtUnix) - Date.now() / 1000)).toBeLessThan(60);
    });

    it("Remove takes files and trees away, and what is missing is no failure", async () => {
      await write(at("tree/of/files"), "x");
      await rpc.remove({ path: at("tree") });
      await rpc.remove({ path: at("tree") });
      await expect(rpc.stat({ path: at("tree") })).rejects.toMatchObject(fails(Code.NotFound));
    });

    it("a link is told as a link and never followed by Remove", async () => {
      await write(at("target/kept"), "kept");
      await sandbox.exec(["ln", "-s", at("target"), at("link")]);
      expect(await rpc.stat({ path: at("link") })).toMatchObject({ isDir: false, mode: 0o120777 });
      await rpc.remove({ path: at("link") });
      expect(await read(at("target/kept"))).toBe("kept");
    });

    it("a first message other than open is refused", async () => {
      await expect(rpc.writeFile(each({ msg: { case: "data", value: bytes("x") } }))).rejects.toMatchObject(fails(Code.InvalidArgument));
    });
  });

  describe(`Archive and Upload (${encoding})`, () => {
    const archive = async (path: string) => {
      const chunks = await gather(rpc.archive({ path, direction: pb.ArchiveRequest_Direction.DOWNLOAD }));
      expect(chunks.map(({ eof }) => eof)).toEqual(chunks.map((_, index) => index === chunks.length - 1));
      return Buffer.concat(chunks.map(({ data }) => data));
    };
    const upload = (dest: string, tar: Uint8Array) =>
      rpc.upload(each({ msg: { case: "open", value: { dest } } }, { msg: { case: "chunk", value: tar } }));

    it("a folder comes back as a tar, and the tar as a folder", async () => {
      await write(at("pack/one.txt"), "content of one");
      await sandbox.exec(["ln", "-s", "one.txt", at("pack/link")]);
      const tar = await archive(at("pack"));
      expect(tar.length).toBeGreaterThanOrEqual(512);
      expect((await upload(at("unpacked"), tar)).bytesWritten).toBe(BigInt(tar.length));
      expect(await read(at("unpacked/one.txt"))).toBe("content of one");
      expect(await read(at("unpacked/link"))).toBe("content of one");
    });

    it("Upload unpacks a tar that another program made", async () => {
      const { bytesWritten } = await upload(at("uploaded"), tarOf({ "uploaded.txt": "from a tar" }));
      expect(bytesWritten).toBeGreaterThan(0n);
      expect(await read(at("uploaded/uploaded.txt"))).toBe("from a tar");
    });

    it("a member that leads outside is refused and nothing is written", async () => {
      for (const name of ["../escape.txt", "/tmp/escape.txt", "a/../../escape.txt"]) {
        await expect(upload(at("jail"), tarOf({ "good.txt": "x", [name]: "bad" }))).rejects.toMatchObject(fails(Code.PermissionDenied));
      }
      const { stdout } = await sandbox.exec(
        `ls ${at("jail")} 2>/dev/null; find / /tmp /run -xdev -name 'escape.txt' -not -path '/proc/*' 2>/dev/null`,
      );
      expect(stdout).toBe("");
    });

    it("only /workspace is archived and unpacked, also through links", async () => {
      await sandbox.exec(["ln", "-sfn", "/etc", at("etc")]);
      for (const path of ["/etc", at("etc"), `${at("")}../../etc`]) {
        await expect(archive(path), path).rejects.toMatchObject(fails(Code.PermissionDenied));
        await expect(upload(path, tarOf({ f: "x" })), path).rejects.toMatchObject(fails(Code.PermissionDenied));
      }
      await expect(archive(at("missing"))).rejects.toMatchObject(fails(Code.NotFound));
    });

    it("links are packed as links, and nothing is unpacked through one", async () => {
      const links = { passwd: "/etc/passwd", stdin: "/proc/1/fd/0", out: "/tmp", up: "../../etc" };
      await sandbox.exec(
        `mkdir -p ${at("links")}; ${Object.entries(links)
          .map(([name, target]) => `ln -sfn ${target} ${at(`links/${name}`)}`)
          .join("; ")}`,
      );
      const tar = (await archive(at("links"))).toString("latin1");
      for (const target of Object.values(links)) expect(tar).toContain(target);
      expect(tar).not.toContain("root:x:0:0");
      for (const name of ["out/through.txt", "up/through.txt", "stdin/through.txt"]) {
        await expect(upload(at("links"), tarOf({ [name]: "bad" })), name).rejects.toMatchObject(fails(Code.PermissionDenied));
      }
      // What is unpacked in the place of a link replaces the link.
      await upload(at("links"), tarOf({ passwd: "mine" }));
      expect(await read(at("links/passwd"))).toBe("mine");
      const found = await sandbox.exec(
        "find / /tmp /run -xdev -name through.txt -not -path '/proc/*' 2>/dev/null; grep -c root:x:0:0 /etc/passwd",
      );
      expect(found.stdout).toBe("1\n");
    });

    it("other directions, and an upload that does not begin with open, are refused", async () => {
      for (const direction of [pb.ArchiveRequest_Direction.UNTAR, pb.ArchiveRequest_Direction.DIRECTION_UNSPECIFIED]) {
        await expect(gather(rpc.archive({ path: "/workspace", direction }))).rejects.toMatchObject(fails(Code.InvalidArgument));
      }
      await expect(rpc.upload(each({ msg: { case: "chunk", value: bytes("x") } }))).rejects.toMatchObject(fails(Code.InvalidArgument));
    });
  });

  describe(`Watch (${encoding})`, () => {
    /** Watching when this resolves: a probe was seen. */
    async function watch(path: string, recursive: boolean) {
      const leave = new AbortController();
      const seen: string[] = [];
      const ended = (async () => {
        for await (const event of rpc.watch({ path, recursive }, { signal: leave.signal })) {
          const { kind, path: from, newPath } = event;
          seen.push(`${pb.FsEvent_Kind[kind]} ${from.slice(path.length)}${newPath ? ` ${newPath.slice(path.length)}` : ""}`);
        }
      })().catch((error) => error);
      const probe = `touch ${path}/probe; rm ${path}/probe`;
      await until("the watch has begun", async () => {
        await sandbox.exec(probe);
        return seen.includes("DELETE /probe");
      });
      return {
        async sees(event: string, command: string) {
          await sandbox.exec(command);
          await until(`${event} is among ${JSON.stringify(seen)}`, () => seen.includes(event), 2000);
        },
        async leave() {
          leave.abort();
          expect(await ended).toMatchObject({ code: Code.Canceled });
        },
      };
    }

    it("tells of what is created, changed, renamed and deleted", async () => {
      const folder = at("watched");
      await rpc.mkdir({ path: folder });
      const watching = await watch(folder, false);
      await watching.sees("CREATE /old.txt", `touch ${folder}/old.txt`);
      await watching.sees("MODIFY /old.txt", `echo x >> ${folder}/old.txt`);
      await watching.sees("RENAME /old.txt /new.txt", `mv ${folder}/old.txt ${folder}/new.txt`);
      await watching.sees("DELETE /new.txt", `rm ${folder}/new.txt`);
      await watching.leave();
    });

    it("follows folders that are made later when it is recursive", async () => {
      const folder = at("watched-deep");
      await rpc.mkdir({ path: `${folder}/there` });
      const watching = await watch(folder, true);
      await watching.sees("CREATE /there/file", `touch ${folder}/there/file`);
      await watching.sees("CREATE /new/er", `mkdir -p ${folder}/new/er`);
      await watching.sees("CREATE /new/er/file", `touch ${folder}/new/er/file`);
      await watching.leave();
    });

    it("refuses what is no folder, is missing, or lies outside of /workspace", async () => {
      await write(at("a-file"), "x");
      const refused = (path: string) => expect(gather(rpc.watch({ path })), path).rejects;
      await refused(at("a-file")).toMatchObject(fails(Code.InvalidArgument));
      await refused(at("missing")).toMatchObject(fails(Code.NotFound));
      await refused("/etc").toMatchObject(fails(Code.PermissionDenied));
    });
  });

  describe(`Exec and ExecStream (${encoding})`, () => {
    const doors: [string, (open: Plain) => AsyncIterable<pb.ExecResponse>][] = [
      ["ExecStream", (request) => rpc.execStream(request)],
      ["Exec", (request) => rpc.exec(each(open(request)))],
    ];
    for (const [name, exec] of doors) {
      it(`${name} gives output, exit code and duration`, async () => {
        expect(await outcome(exec({ command: "printf 'hello'", cwd: "/tmp" }))).toMatchObject({ stdout: "hello", exit: { exitCode: 0 } });
        expect(await outcome(exec({ command: "exit 42" }))).toMatchObject({ exit: { exitCode: 42 } });
        const { stdout, stderr, exit } = await outcome(exec({ command: "printf 'err' >&2" }));
        expect([stdout, stderr, exit?.exitCode]).toEqual(["", "err", 0]);
        expect(exit?.execTimeMs).toBeGreaterThan(0);
      });

      it(`${name} ends a program at its time-out with 124`, async () => {
        expect((await outcome(exec({ command: "sleep 30", timeoutSeconds: 1 }))).exit?.exitCode).toBe(124);
      });

      it(`${name} runs a command with args without a shell`, async () => {
        expect((await outcome(exec({ command: "printf", args: ["%s|", "a b", "$HOME", "*"] }))).stdout).toBe("a b|$HOME|*|");
      });

      it(`${name} keeps bytes that are no text`, async () => {
        const { stdout } = await outcome(exec({ command: "printf '\\000\\377\\200'" }));
        expect(Buffer.from(stdout, "latin1").toString("hex")).toBe("00ff80");
      });

      it(`${name} refuses a time-out above the ceiling and takes the ceiling itself`, async () => {
        await expect(outcome(exec({ command: "true", timeoutSeconds: 86_401 }))).rejects.toMatchObject(fails(Code.InvalidArgument));
        expect((await outcome(exec({ command: "true", timeoutSeconds: 86_400 }))).exit?.exitCode).toBe(0);
      });
    }

    it("a first message other than open is refused", async () => {
      await expect(outcome(rpc.exec(each(stdin("x"))))).rejects.toMatchObject(fails(Code.InvalidArgument));
    });

    it("output arrives while the program waits for more input", async () => {
      const requests = createWritableIterable<ExecRequest>();
      const answers = rpc.exec(requests)[Symbol.asyncIterator]();
      await requests.write(open({ command: "read a; echo got $a; read b; echo got $b" }));
      for (const word of ["one", "two"]) {
        await requests.write(stdin(`${word}\n`));
        const { value } = await answers.next();
        expect(Buffer.from(value?.msg.value as Uint8Array).toString()).toBe(`got ${word}\n`);
      }
      expect((await answers.next()).value?.msg).toMatchObject({ case: "exit", value: { exitCode: 0 } });
      requests.close();
    });

    it("stdin ends with stdinClose, and with the half-close of the request", async () => {
      const close = { msg: { case: "stdinClose" as const, value: true } };
      expect(await outcome(rpc.exec(each(open({ command: "wc -c" }), stdin("12345"), close)))).toMatchObject({ stdout: "5\n" });
      expect(await outcome(rpc.exec(each(open({ command: "wc -c" }), stdin("123"))))).toMatchObject({ stdout: "3\n" });
    });
  });

  describe(`a terminal through Exec (${encoding})`, () => {
    const pty = { term: "xterm-256color", size: { cols: 80, rows: 24 } };

    it("runs a program and gives its exit code", async () => {
      const { stdout, exit } = await outcome(
        rpc.exec(each(open({ command: "printf 'PTYMARKER'; tty; echo $TERM", timeoutSeconds: 10, pty }))),
      );
      expect(stdout).toMatch(/PTYMARKER\/dev\/pts\/\d+\r\nxterm-256color\r\n/);
      expect(exit?.exitCode).toBe(0);
    });

    it("loses no input that comes before the shell is there, fifty times in a row", async () => {
      const begun = performance.now();
      for (let round = 0; round < 50; round += 1) {
        const resize = { msg: { case: "resize" as const, value: { cols: 120, rows: 40 } } };
        const close = { msg: { case: "stdinClose" as const, value: true } };
        const requests = each(open({ command: "/bin/sh", timeoutSeconds: 20, pty }), stdin("echo $((40+2)); stty size\n"), resize, close);
        const { stdout, exit } = await outcome(rpc.exec(requests));
        expect(stdout, `round ${round}`).toMatch(/42\r\n/);
        expect(exit?.exitCode, `round ${round}: ${stdout}`).toBe(0);
      }
      expect(performance.now() - begun).toBeLessThan(20_000 * patience);
    });
  });

  describe(`Processes, Signal, Vitals (${encoding})`, () => {
    it("a process is listed by its name, without its arguments, and ends by a signal", async () => {
      const background = sandbox.execBackground(["sleep", "9610"]);
      const pid = await background.started;
      const { processes } = await rpc.processes({});
      expect(processes.find((row) => row.pid === pid)).toMatchObject({ command: "sleep", state: expect.stringMatching(/./) });
      expect(JSON.stringify(processes.map(({ command }) => command))).not.toContain("9610");
      for (const row of processes) {
        expect(row.pid).toBeGreaterThan(0);
        expect(row.state).not.toBe("");
        expect(row.rssBytes).toBeGreaterThanOrEqual(0n);
      }
      await rpc.signal({ pid, signal: 15 });
      const { exitCode } = await background.wait();
      expect(exitCode).toBe(-1);
    });

    it.each([
      ["the first process", 1, 15, Code.InvalidArgument],
      ["process 0", 0, 15, Code.InvalidArgument],
      ["a negative process", -5, 15, Code.InvalidArgument],
      ["signal 0", 100, 0, Code.InvalidArgument],
      ["signal 65", 100, 65, Code.InvalidArgument],
      ["a negative signal", 100, -9, Code.InvalidArgument],
      ["a process that does not exist", 2_147_483_647, 15, Code.NotFound],
    ])("Signal refuses %s", async (_, pid, signal, code) => {
      await expect(rpc.signal({ pid, signal })).rejects.toMatchObject(fails(code));
    });

    it("Vitals samples until the caller leaves", async () => {
      const leave = new AbortController();
      const samples: pb.GuestVitals[] = [];
      for await (const sample of rpc.vitals({ intervalSeconds: 0 }, { signal: leave.signal })) {
        samples.push(sample);
        if (samples.length === 2) break;
      }
      leave.abort();
      for (const sample of samples) {
        expect(Math.abs(Number(sample.sampledAtUnix) - Date.now() / 1000)).toBeLessThan(30);
        expect(sample.memUsedBytes).toBeGreaterThan(0n);
        expect(sample.memTotalBytes).toBeGreaterThan(sample.memUsedBytes);
        expect(sample.cpuPercent).toBeGreaterThanOrEqual(0);
        expect(sample.processCount).toBeGreaterThan(1);
      }
    });

    it.each(["budget", "fork", "checkpoint", "extendLifetime"] as const)("%s says that it is not there", async (method) => {
      await expect(rpc[method]({})).rejects.toMatchObject(fails(Code.Unimplemented));
    });
  });

  describe(`PortForward (${encoding})`, () => {
    const port = encoding === "json" ? 7101 : 7102;
    const frameOpen = (value: number): Frame => ({ msg: { case: "open" as const, value: { port: value } } });
    const frameData = (value: string): Frame => ({ msg: { case: "data" as const, value: bytes(value) } });

    it("carries data both ways and ends with the far end", async () => {
      const echo = `
import socket
server = socket.create_server(("127.0.0.1", ${port}))
while True:
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
`;
      const server = sandbox.execBackground(["python3", "-c", echo]);
      await until("the echo server listens", async () => {
        const probe = `import socket; socket.create_connection(("127.0.0.1", ${port}), 1)`;
        return (await sandbox.exec(["python3", "-c", probe])).exitCode === 0;
      });
      const requests = createWritableIterable<Frame>();
      const answers = rpc.portForward(requests)[Symbol.asyncIterator]();
      await requests.write(frameOpen(port));
      for (const word of ["first", "second"]) {
        await requests.write(frameData(word));
        expect(Buffer.from((await answers.next()).value?.msg.value as Uint8Array).toString()).toBe(word);
      }
      await requests.write(frameData("x".repeat(300_000)));
      let received = 0;
      while (received < 300_000) {
        const { value } = await answers.next();
        expect(value?.msg.case).toBe("data");
        received += (value!.msg.value as Uint8Array).length;
      }
      requests.close();
      expect((await answers.next()).value?.msg).toEqual({ case: "close", value: true });
      expect((await answers.next()).done).toBe(true);
      await server.kill();
    });

    it("refuses ports that no one listens on, that cannot be, and a first message other than open", async () => {
      await expect(gather(rpc.portForward(each(frameOpen(7199))))).rejects.toMatchObject(fails(Code.Unavailable));
      for (const impossible of [0, 65_536]) {
        await expect(gather(rpc.portForward(each(frameOpen(impossible))))).rejects.toMatchObject(fails(Code.InvalidArgument));
      }
      await expect(gather(rpc.portForward(each(frameData("x"))))).rejects.toMatchObject(fails(Code.InvalidArgument));
    });
  });

  describe(`RunCode and RunCodeStream (${encoding})`, () => {
    const doors: [string, (open: { code: string; language?: string; timeoutSeconds?: bigint }) => Promise<Cell>][] = [
      ["RunCodeStream", (request) => cell(rpc.runCodeStream(request))],
      ["RunCode", (request) => cell(rpc.runCode(each({ msg: { case: "open", value: request } })))],
    ];
    for (const [name, run] of doors) {
      it(`${name} runs Python, keeps its state and tells errors as data`, async () => {
        expect(await run({ code: "print(2+2)", language: "python", timeoutSeconds: 30n })).toMatchObject({ stdout: "4\n", exitCode: 0 });
        expect(await run({ code: "undefined_variable_xyz_conformance" })).toMatchObject({ error: { name: "NameError" }, exitCode: 1 });
        expect(await run({ code: "x = 41" })).toMatchObject({ exitCode: 0, stdout: "", text: "" });
        expect(await run({ code: "print(x + 1)" })).toMatchObject({ exitCode: 0, stdout: "42\n" });
        expect(await run({ code: "print('hi')\n40 + 2" })).toMatchObject({ stdout: "hi\n", text: "42", data: { "text/plain": "42" } });
        const { error } = await run({ code: "raise ValueError('bad')" });
        expect(error).toMatchObject({ name: "ValueError", value: "bad" });
        expect(error?.traceback.join("\n")).toContain("ValueError: bad");
      });

      it(`${name} has no kernel for a language that it does not know`, async () => {
        expect(await run({ code: "puts 'hello'", language: "ruby" })).toMatchObject({
          error: { name: "KernelUnavailable" },
          exitCode: 127,
        });
      });

      it(`${name} refuses a time-out above the ceiling and takes the ceiling itself`, async () => {
        await expect(run({ code: "1", timeoutSeconds: 86_401n })).rejects.toMatchObject(fails(Code.InvalidArgument));
        expect(await run({ code: "1", timeoutSeconds: 86_400n })).toMatchObject({ text: "1", exitCode: 0 });
      });
    }

    it("a first message other than open is refused", async () => {
      const refused = cell(rpc.runCode(each({ msg: { case: "stdin", value: bytes("x") } })));
      await expect(refused).rejects.toMatchObject(fails(Code.InvalidArgument));
    });

    it("an endless loop is interrupted at its time-out and the state stays", async () => {
      await cell(rpc.runCodeStream({ code: "kept = 21" }));
      const { error, exitCode } = await cell(rpc.runCodeStream({ code: "while True: pass", timeoutSeconds: 1n }));
      expect(error).toMatchObject({ name: "TimeoutError", value: "execution exceeded the 1s timeout budget", traceback: [] });
      expect(exitCode).toBe(1);
      expect(await cell(rpc.runCodeStream({ code: "kept * 2" }))).toMatchObject({ text: "42" });
    });

    it("a kernel that ends itself is told, and the next call has a new one", async () => {
      expect(await cell(rpc.runCodeStream({ code: "import os; os._exit(0)" }))).toMatchObject({
        error: { name: "KernelDied" },
        exitCode: 1,
      });
      expect(await cell(rpc.runCodeStream({ code: "40 + 2" }))).toMatchObject({ text: "42", exitCode: 0 });
    });
  });
}

describe("the bytes on the wire", () => {
  /** One bidirectional call over HTTP/2 with the bytes as they are written here. */
  function exchange(contentType: string, body: Buffer): Promise<{ status: number; body: Buffer }> {
    return new Promise((resolve, reject) => {
      const session = http2.connect(live.url);
      session.on("error", reject);
      const stream = session.request({
        ":method": "POST",
        ":path": "/sandbox.v1.Sandbox/Exec",
        "content-type": contentType,
        "x-sandbox-id": sandbox.id,
      });
      const chunks: Buffer[] = [];
      let status = 0;
      stream.on("response", (headers) => {
        status = headers[":status"] ?? 0;
      });
      stream.on("data", (chunk) => chunks.push(chunk));
      stream.on("error", reject);
      stream.on("end", () => {
        session.close();
        resolve({ status, body: Buffer.concat(chunks) });
      });
      stream.end(body);
    });
  }

  it("are the JSON that published clients read, and end with an empty end-stream envelope", async () => {
    const { status, body } = await exchange("application/connect+json", envelope({ open: { command: "printf hi" } }));
    expect(status).toBe(200);
    const stdout = '{"stdout":"aGk="}';
    expect(body.subarray(0, 5 + stdout.length).toString("latin1")).toBe(`\0\0\0\0${String.fromCharCode(stdout.length)}${stdout}`);
    const exit = body.subarray(5 + stdout.length, -7);
    expect([exit[0], exit.readUInt32BE(1)]).toEqual([0, exit.length - 5]);
    const json = JSON.parse(exit.subarray(5).toString());
    // Proto3 JSON leaves zero out: clients read a missing exit code as 0.
    expect(json).toEqual({ exit: { execTimeMs: expect.any(Number) } });
    expect(body.subarray(-7).toString("hex")).toBe("02000000027b7d");
  });

  it("are protobuf when that is asked for", async () => {
    const command = Buffer.from("printf hi");
    const message = Buffer.concat([Buffer.from([0x0a, command.length + 2, 0x0a, command.length]), command]);
    const { status, body } = await exchange(
      "application/connect+proto",
      Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]),
    );
    expect(status).toBe(200);
    expect(body.subarray(0, 9).toString("hex")).toBe("00000000040a026869");
    expect(body.subarray(-7).toString("hex")).toBe("02000000027b7d");
  });

  it("leave the connection of an HTTP/1.1 client free for its next call", async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const ports: unknown[] = [];
    for (let call = 0; call < 3; call += 1) {
      await new Promise<void>((resolve, reject) => {
        const request = httpRequest(`${live.url}/sandbox.v1.Sandbox/ExecStream`, {
          method: "POST",
          agent,
          headers: { "Content-Type": "application/connect+json", "X-Sandbox-Id": sandbox.id },
        });
        request.on("response", (response) => {
          ports.push(response.socket.localPort);
          response.resume().on("end", resolve);
        });
        request.on("error", reject);
        request.end(envelope({ command: "true" }));
      });
    }
    agent.destroy();
    expect(new Set(ports).size).toBe(1);
    expect(ports).toHaveLength(3);
  });
});

describe("the published examples", () => {
  it("run_code gives the value of the last expression", async () => {
    expect((await sandbox.runCode("import math; math.sqrt(144)")).text).toBe("12.0");
    expect((await sandbox.runCode("1 + 1")).text).toBe("2");
  });

  it("exec runs python", async () => {
    expect(await sandbox.exec("python -c 'print(2 + 2)'")).toMatchObject({ stdout: "4\n", exitCode: 0 });
  });

  it("a file of /workspace is written and read", async () => {
    await sandbox.files.write("/workspace/notes/hello.txt", "hello");
    expect(await sandbox.files.read("/workspace/notes/hello.txt")).toBe("hello");
  });

  it("two forks each write a file that the other does not see", async () => {
    const [one, two] = await sandbox.fork(2);
    await one!.files.write("/workspace/of-one", "1");
    await two!.files.write("/workspace/of-two", "2");
    expect([await one!.files.exists("/workspace/of-two"), await two!.files.exists("/workspace/of-one")]).toEqual([false, false]);
    expect([await one!.files.read("/workspace/of-one"), await two!.files.read("/workspace/of-two")]).toEqual(["1", "2"]);
    expect(await sandbox.files.exists("/workspace/of-one")).toBe(false);
    await Promise.all([one!.terminate(), two!.terminate()]);
  });
});
