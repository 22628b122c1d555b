import type { ServerResponse } from "node:http";
import { describe, expect, it } from "vitest";
import { base64, json, type Respond, type SeenRequest, startFakeServer } from "../test/fake-server.ts";
import { Sandbox } from "./sandbox.ts";

type Server = Awaited<ReturnType<typeof startFakeServer>>;

async function withSandbox<T>(respond: Respond, use: (sandbox: Sandbox, server: Server) => Promise<T>) {
  await using server = await startFakeServer(respond);
  return await use(new Sandbox({ id: "sb", endpoint: server.url }), server);
}

const output = (stream: string, offset: number, text: string) => ({ stream, offset, data: base64(text) });
const exit = (exit_code: number) => ({ exit: { exit_code, signal: 0, timed_out: false, exec_time_ms: 5 } });
const lines = (...rows: object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

/** A server that has one process, 7, with the given answer to a request for its output. */
function processServer(answerOutput: (request: SeenRequest, response: ServerResponse) => void): Respond {
  return (request, response) => {
    if (request.path.includes("/output")) return answerOutput(request, response);
    if (request.path.endsWith("/processes") && request.method === "POST") return json(response, 200, { pid: 7 });
    return json(response, 200, { status: "ok" });
  };
}

describe("a background process", () => {
  const done = processServer((_request, response) =>
    response.end(lines(output("stdout", 0, "one "), output("stdout", 4, "two"), exit(124))),
  );

  it("is there at once, and waits for its result; 124 is a result", async () => {
    await withSandbox(done, async (sandbox, server) => {
      const background = sandbox.execBackground(["sleep", "5"], { env: { K: "V" }, cwd: "/tmp", user: "nobody" });
      expect(background.running()).toBe(true);
      expect(await background.wait()).toEqual({ exitCode: 124, stdout: "one two", stderr: "", execTimeMs: 5 });
      expect(background.running()).toBe(false);
      expect(server.requests[0]?.json()).toEqual({ args: ["sleep", "5"], env: { K: "V" }, cwd: "/tmp", user: "nobody" });
      expect(server.requests[1]?.path).toBe("/v1/sandboxes/sb/processes/7/output?stdout_from=0&stderr_from=0&follow=true");
    });
  });

  it("can be read again, from any offset", async () => {
    const respond = processServer((request, response) => {
      const from = Number(new URL(request.path, "http://x").searchParams.get("stdout_from"));
      response.end(lines(output("stdout", from, "0123456789".slice(from)), exit(0)));
    });
    await withSandbox(respond, async (sandbox) => {
      const events: unknown[] = [];
      for await (const event of sandbox.connectProcess(7).output({ stdoutFrom: 6 })) events.push(event);
      expect(events).toEqual([
        { type: "stdout", offset: 6, data: expect.objectContaining({ length: 4 }) },
        { type: "exit", exitCode: 0, execTimeMs: 5 },
      ]);
    });
  });

  it("goes on where a broken connection left off, without a lost or repeated byte", async () => {
    const whole = "0123456789";
    let tries = 0;
    const respond = processServer((request, response) => {
      const from = Number(new URL(request.path, "http://x").searchParams.get("stdout_from"));
      if (++tries < 3) {
        response.write(lines(output("stdout", from, whole.slice(from, from + 3))), () => response.destroy());
      } else {
        response.end(lines(output("stdout", from, whole.slice(from)), exit(0)));
      }
    });
    await withSandbox(respond, async (sandbox) => {
      expect(await sandbox.connectProcess(7).wait()).toMatchObject({ stdout: whole, exitCode: 0 });
      expect(tries).toBe(3);
    });
  });

  it("is not followed for ever where the server only ever says that it cannot go on", async () => {
    let tries = 0;
    const respond = processServer((_request, response) => {
      tries++;
      response.end(lines({ error: { code: "internal", message: "m", remediation: "r" } }));
    });
    await withSandbox(respond, async (sandbox) => {
      await expect(sandbox.connectProcess(7).wait()).rejects.toMatchObject({ code: "exec_stream_truncated" });
      expect(tries).toBe(6);
    });
  });

  it("reports output that is no longer kept as a gap, and goes on behind it", async () => {
    const respond = processServer((_request, response) =>
      response.end(lines({ gap: { stream: "stdout", from: 0, to: 100 } }, output("stdout", 100, "late"), exit(0))),
    );
    await withSandbox(respond, async (sandbox) => {
      const types: string[] = [];
      for await (const event of sandbox.connectProcess(7).output()) types.push(event.type);
      expect(types).toEqual(["gap", "stdout", "exit"]);
    });
  });

  it("is killed with its whole group, and takes input", async () => {
    await withSandbox(done, async (sandbox, server) => {
      const background = sandbox.execBackground("cat", { stdin: true });
      await background.writeStdin("hi", { close: true });
      await background.kill();
      expect(server.requests[1]?.json()).toEqual({ data: base64("hi"), close: true });
      expect(server.requests[2]?.json()).toEqual({ signal: 9, group: true });
    });
  });

  it("takes input that is larger than a request, in order, and none at all", async () => {
    await withSandbox(done, async (sandbox, server) => {
      const background = sandbox.execBackground("cat", { stdin: true });
      await background.writeStdin("");
      const input = Buffer.alloc(20 * 1024 * 1024, "0123456789");
      await background.writeStdin(input, { close: true });
      const sent = server.requests.filter(({ path }) => path.endsWith("/stdin")).map((request) => request.json());
      expect(sent.map(({ close }) => close)).toEqual([false, false, true]);
      expect(Buffer.concat(sent.map(({ data }) => Buffer.from(data as string, "base64"))).equals(input)).toBe(true);
      await background.writeStdin("", { close: true });
      expect(server.requests.at(-1)?.json()).toEqual({ data: "", close: true });
    });
  });

  it("that cannot be started fails in `wait` and `started`, and is not running", async () => {
    const refuse: Respond = (_request, response) =>
      json(response, 409, { error: { code: "sandbox_not_running", message: "m", remediation: "r" } });
    await withSandbox(refuse, async (sandbox) => {
      const background = sandbox.execBackground("x");
      await expect(background.wait()).rejects.toMatchObject({ code: "sandbox_not_running" });
      await expect(background.started).rejects.toMatchObject({ code: "sandbox_not_running" });
      expect(background.running()).toBe(false);
    });
  });

  it("runs as another user in the foreground too, and is killed when the caller leaves", async () => {
    const respond = processServer((_request, response) => void response.write(lines(output("stdout", 0, "x"))));
    await withSandbox(respond, async (sandbox, server) => {
      for await (const _event of sandbox.execStream("forever", { user: "nobody", timeoutSeconds: 60 })) break;
      expect(server.requests[0]?.json()).toEqual({ command: "forever", user: "nobody", timeout_seconds: 60 });
      expect(server.requests.at(-1)).toMatchObject({ path: "/v1/sandboxes/sb/processes/7/signal" });
    });
  });
});

describe("a terminal", () => {
  it("starts a shell, hands on its output, and ends with its exit code", async () => {
    const respond = processServer((_request, response) => response.end(lines(output("stdout", 0, "$ "), exit(3))));
    await withSandbox(respond, async (sandbox, server) => {
      let seen = "";
      const pty = await sandbox.createPty((data) => (seen += new TextDecoder().decode(data)), { cols: 100, rows: 40 });
      expect(await pty.wait()).toBe(3);
      expect(seen).toBe("$ ");
      expect(pty.offset).toBe(2);
      expect(server.requests[0]?.json()).toMatchObject({ stdin: true, pty: { term: "xterm-256color", cols: 100, rows: 40 } });
    });
  });

  it("keeps the order of what is typed, one request at a time", async () => {
    let typed = "";
    let atOnce = 0;
    let atOnceMax = 0;
    const respond: Respond = async (request, response) => {
      if (request.path.includes("/output")) return void response.write("\n");
      if (request.path.endsWith("/stdin")) {
        atOnceMax = Math.max(atOnceMax, ++atOnce);
        await new Promise(setImmediate);
        typed += Buffer.from(request.json().data as string, "base64").toString();
        atOnce--;
      }
      return json(response, 200, { pid: 7 });
    };
    await withSandbox(respond, async (sandbox) => {
      const pty = await sandbox.createPty(() => undefined);
      await Promise.all([..."the quick brown fox"].map((key) => pty.sendInput(key)));
      await pty.sendInput("!");
      expect(typed).toBe("the quick brown fox!");
      expect(atOnceMax).toBe(1);
      pty.disconnect();
      expect(await pty.wait()).toBe(-1);
    });
  });

  it("tells of output that is no longer kept, and goes on behind it", async () => {
    const rows = [{ gap: { stream: "stdout", from: 10, to: 100 } }, output("stdout", 100, "late"), exit(0)];
    const respond = processServer((_request, response) => response.end(lines(...rows)));
    await withSandbox(respond, async (sandbox) => {
      const seen: unknown[] = [];
      const onData = (data: Uint8Array) => seen.push(new TextDecoder().decode(data));
      const pty = sandbox.connectPty(7, onData, { offset: 10, onGap: (gap) => seen.push(gap) });
      expect(await pty.wait()).toBe(0);
      expect(seen).toEqual([{ from: 10, to: 100 }, "late"]);
      expect(pty.offset).toBe(104);
    });
  });

  it("can be connected to again by pid and offset", async () => {
    const respond = processServer((_request, response) => response.end(lines(output("stdout", 10, "new"), exit(0))));
    await withSandbox(respond, async (sandbox, server) => {
      let seen = "";
      const pty = sandbox.connectPty(7, (data) => (seen += new TextDecoder().decode(data)), { offset: 10 });
      await pty.resize(120, 40);
      expect(await pty.wait()).toBe(0);
      expect(seen).toBe("new");
      expect(server.requests.find(({ path }) => path.includes("output"))?.path).toContain("stdout_from=10");
      expect(server.requests.find(({ path }) => path.endsWith("/resize"))?.json()).toEqual({ cols: 120, rows: 40 });
    });
  });
});
