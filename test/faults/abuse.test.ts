/** Programs that misbehave inside a sandbox: only that sandbox suffers, and what it is told is true. */

import { readFileSync } from "node:fs";
import path from "node:path";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { isolationUnderTest } from "../support/engine-under-test.ts";
import { heldBytes } from "../support/held-memory.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { onlyOn } from "../support/only-on.ts";
import { until } from "../support/until.ts";

const MiB = 1024 * 1024;
const shortProcesses = Number(process.env.MITOS_SHORT_PROCESSES ?? 10_000);
const isRoot = process.getuid?.() === 0;
const fixture = (name: string) => readFileSync(path.join(import.meta.dirname, "../fixtures", name));

let live: LiveServer;
/** Survives everything that the others do. */
let neighbour: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  neighbour = await live.create();
  await neighbour.runCode("kept = 'all of it'");
});
afterAll(() => live.close());
afterEach(async () => {
  expect((await neighbour.exec("echo alive")).stdout).toBe("alive\n");
  expect((await neighbour.runCode("kept")).text).toBe("'all of it'");
});

async function abused(resources: { processesMax?: number } = {}): Promise<Sandbox> {
  return equipped(await live.create({ resources }));
}

async function equipped(sandbox: Sandbox): Promise<Sandbox> {
  for (const name of ["abuse.py", "fork-bomb.sh"]) await sandbox.files.write(`/workspace/${name}`, fixture(name));
  return sandbox;
}

const abuse = (...words: string[]) => ["python3", "/workspace/abuse.py", ...words];

/** Starts it on its own and waits until it has said so. */
async function startAbuse(sandbox: Sandbox, ...words: string[]): Promise<number> {
  const pid = await sandbox.execBackground(abuse(...words)).started;
  return pid;
}

const recordOf = ({ id }: Sandbox) => live.engine.list().find((one) => one.id === id);

/** A kernel without memory reads the pages of its programs again and again before it gives up: emulated, for a minute or two. */
const failsWithinMs = isolationUnderTest === "microvm-tcg" ? 240_000 : 60_000;

/** What a sandbox that has failed says about itself. */
async function failureOf(sandbox: Sandbox): Promise<string> {
  await until("the sandbox has failed", () => recordOf(sandbox)?.state !== "running", failsWithinMs);
  const record = recordOf(sandbox);
  expect(record?.state).toBe("failed");
  return String(record?.endReason);
}

async function output(sandbox: Sandbox, command: string | readonly string[], timeoutSeconds = 60): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(command, { timeoutSeconds });
  expect(exitCode, stderr).toBe(0);
  return stdout.trim();
}

interface OutputLine {
  readonly offset?: number;
  readonly data?: string;
  readonly gap?: { readonly from: number; readonly to: number };
}

/** Everything that is kept of the output of a process that has ended. */
async function kept(sandbox: Sandbox, pid: number): Promise<OutputLine[]> {
  const answer = await fetch(`${live.url}/v1/sandboxes/${sandbox.id}/processes/${pid}/output?follow=false`, {
    headers: { Connection: "close" },
  });
  const lines = (await answer.text()).split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line) as OutputLine);
}

/** All that is done meanwhile shares one processor with as many processes as there may be. */
const bombMs = 240_000;

describe("a fork bomb", () => {
  it(
    "is told no by its own sandbox, which answers meanwhile and is well again without it",
    async () => {
      await using sandbox = await abused({ processesMax: 64 });
      let told = "";
      const bomb = sandbox.execBackground(["sh", "/workspace/fork-bomb.sh"], {
        onStderr: (data) => {
          told = (told + Buffer.from(data).toString()).slice(-1000);
        },
      });
      await bomb.started;
      await until("it is refused", () => told.includes("Cannot fork"), bombMs);
      // What the agent starts is a program with the same limit, and may do everything but start further ones.
      expect(await output(sandbox, ["cat", "/proc/1/comm"])).toBe("mitos-guest");
      expect(recordOf(sandbox)?.state).toBe("running");
      // Stopped ones keep their places, so that the others cannot fork; killed at once, each would make room for a new one. One that was forked while
      // the others were looked through comes next time; the dead count until they are collected.
      await until(
        "every process of it has been killed, and programs can fork again",
        async () => {
          const killed = (await sandbox.exec(["pkill", "-9", "-c", "-f", "fork-bomb"])).stdout.trim();
          return killed === "0" && (await sandbox.exec("echo $(echo well)")).stdout === "well\n";
        },
        bombMs,
      );
    },
    3 * bombMs,
  );

  it("is bound by its own sandbox's limit, in the kernel that its template has started as well", async () => {
    await using sandbox = await abused({ processesMax: 64 });
    const ask = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC))";
    const limit = await output(sandbox, ["python3", "-c", ask]);
    expect(limit).toBe("(96, 96)"); // 32 for the agent's own threads
    expect((await sandbox.runCode(ask)).logs.stdout.join("").trim()).toBe(limit);
  });

  describe("that gets around the limit of each program", () => {
    onlyOn("gvisor", "the kernel of a virtual machine counts the programs of all users together: own-kernel");

    it("ends its sandbox, which says why", async ({ skip }) => {
      skip(!isRoot, "without root there is no cgroup behind the sandbox's own limit");
      const sandbox = await abused({ processesMax: 16 });
      await sandbox.execBackground(abuse("many_users")).started;
      expect(await failureOf(sandbox)).toBe("killed: it had more processes and threads than its limit of 16 allows");
      await expect(sandbox.exec("true")).rejects.toMatchObject({
        code: "sandbox_not_running",
        errorCause: expect.stringContaining("limit of 16"),
      });
      await sandbox.terminate();
    });
  });
});

describe("memory", () => {
  async function endsBy(name: string): Promise<void> {
    const sandbox = await equipped(await live.createWithMemory(96));
    await startAbuse(sandbox, name);
    expect(await failureOf(sandbox)).toMatch(/^oom_killed: .*limit of 96 MiB/);
    await expect(sandbox.exec("true")).rejects.toMatchObject({ code: "oom_killed", errorCause: expect.stringContaining("96 MiB") });
    await sandbox.terminate();
  }

  it("held by a program over the limit ends the sandbox, which names the limit", () => endsBy("memory_hog"), 2 * failsWithinMs);

  describe("of files", () => {
    onlyOn("gvisor", "files of a virtual machine lie on its disk: own-kernel");

    it("over the limit ends the sandbox, which names the limit", () => endsBy("disk_filler"));
  });
});

describe("within its limits", () => {
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await abused({ processesMax: 128 });
  });
  afterEach(async () => {
    expect(recordOf(sandbox)?.state).toBe("running");
    expect(await output(sandbox, "echo $(echo well)")).toBe("well");
  });
  afterAll(() => sandbox.terminate());

  it("a program has no more descriptors than its limit, and takes none from others", async () => {
    let told = "";
    const hog = sandbox.execBackground(abuse("descriptor_hog"), {
      onStdout: (data) => {
        told += Buffer.from(data).toString();
      },
    });
    await hog.started;
    await until("it is refused", () => told.includes("refused: Too many open files after 65"), 60_000);
    expect(await output(sandbox, "cat /etc/hostname | wc -l")).toBe("1");
    await hog.kill();
  });

  it("output that is read arrives whole, however much there is and however fast", async () => {
    const size = 100 * MiB;
    // As protobuf: base64 in JSON would cost more than all the rest.
    const client = createClient(pb.Sandbox, createConnectTransport({ baseUrl: live.url, httpVersion: "2", useBinaryFormat: true }));
    const request = { command: abuse("flood")[0]!, args: abuse("flood", "100").slice(1), timeoutSeconds: 110 };
    let bytes = 0;
    let wrong = 0;
    let last = "";
    for await (const { msg } of client.execStream(request, { headers: { "X-Sandbox-Id": sandbox.id } })) {
      if (msg.case !== "stdout") continue;
      // Of each chunk the first whole line: its number follows from where it stands.
      const text = Buffer.from(msg.value).toString("latin1");
      const at = (64 - (bytes % 64)) % 64;
      if (text.length >= at + 64 && Number(text.slice(at, at + 63)) !== (bytes + at) / 64) wrong += 1;
      bytes += msg.value.length;
      last = (last + text).slice(-64);
    }
    expect({ bytes, wrong, last: Number(last) }).toEqual({ bytes: size, wrong: 0, last: size / 64 - 1 });
  });

  it("output that nobody reads is dropped, told as a gap, and its end is kept", async () => {
    const before = heldBytes();
    const pid = Number(
      (
        (await (
          await fetch(`${live.url}/v1/sandboxes/${sandbox.id}/processes`, {
            method: "POST",
            body: JSON.stringify({ args: abuse("flood", "100") }),
            headers: { Connection: "close" },
          })
        ).json()) as { pid: number }
      ).pid,
    );
    await until("it has ended", async () => (await sandbox.processes()).find((one) => one.pid === pid)?.state !== "running", 100_000);
    const lines = await kept(sandbox, pid);
    const [gap] = lines;
    expect(gap?.gap?.from).toBe(0);
    const data = Buffer.concat(lines.flatMap((line) => (line.data === undefined ? [] : [Buffer.from(line.data, "base64")])));
    expect(Number(gap?.gap?.to) + data.length).toBe(100 * MiB);
    expect(data.length).toBeLessThanOrEqual(256 * 1024);
    expect(Number(data.subarray(-64).toString())).toBe((100 * MiB) / 64 - 1);
    expect(heldBytes() - before).toBeLessThan(64 * MiB);
  });

  it("a time-out kills what ignores every polite signal, and what it has started", async () => {
    await expect(sandbox.exec(abuse("ignore_sigterm"), { timeoutSeconds: 2 })).rejects.toMatchObject({ code: "exec_timeout" });
    await until("nothing of it is left", async () => (await sandbox.exec(["pgrep", "-f", "ignore_sigterm"])).exitCode === 1);
  });

  it("ten thousand short processes and orphans leave no trace in the table", { timeout: 700_000 }, async () => {
    expect(await output(sandbox, abuse("short_processes", String(shortProcesses)), 600)).toBe(String(shortProcesses));
    expect(await output(sandbox, abuse("orphans", "50"), 100)).toBe("50");
    await until(
      "every orphan has been reaped",
      async () => (await output(sandbox, "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l")) === "0",
    );
  });

  it("zombies that their parent keeps are bounded, and go with it", async () => {
    let told = "";
    const storm = sandbox.execBackground(abuse("zombies"), {
      onStdout: (data) => {
        told += Buffer.from(data).toString();
      },
    });
    await storm.started;
    await until("it is refused", () => told.includes("refused: Resource temporarily unavailable"), 60_000);
    await storm.kill();
    await until("they are gone", async () => (await sandbox.exec(["pgrep", "-f", "zombies"])).exitCode === 1);
  });

  it("many files and deep folders are no more than memory, and can be listed and removed", async () => {
    expect(await output(sandbox, abuse("files", "5000"))).toBe("5000");
    expect(await sandbox.files.list("/var/tmp/many")).toHaveLength(5000);
    expect(await output(sandbox, abuse("deep_folders", "300"))).toBe("300");
    expect(await output(sandbox, "rm -rf /var/tmp/many /var/tmp/deep; ls -A /var/tmp | wc -l")).toBe("0");
  });

  it("a program that stops, traces and signals all others stops neither the agent nor what is started later", async () => {
    expect(await output(sandbox, abuse("harm_others"))).toBe("done");
    expect(await output(sandbox, ["cat", "/proc/1/comm"])).toBe("mitos-guest");
  });

  it("programs that only compute use no more processors than the sandbox has", async ({ skip }) => {
    skip(!isRoot, "without root the host does not limit processor time");
    const spinners = sandbox.execBackground(abuse("spin", "4"));
    await spinners.started;
    const used = async () => (await live.engine.meter(sandbox.id as never)).cpuMs;
    const [cpuBefore, before] = [await used(), performance.now()];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const share = ((await used()) - cpuBefore) / (performance.now() - before);
    expect(share).toBeGreaterThan(0.05);
    expect(share).toBeLessThan(1.3);
    await spinners.kill();
    await until("they are gone", async () => (await sandbox.exec(["pkill", "-9", "-f", "spin"])).exitCode === 1);
  });
});

describe("a program that stops the agent", () => {
  onlyOn("gvisor", "the kernel of a virtual machine lets nobody stop its first process: own-kernel");

  it("loses its own sandbox alone, which ends when asked", async () => {
    const sandbox = await abused();
    // The answer never comes (after two minutes of silence the sandbox would fail by itself).
    const asked = sandbox.exec(["python3", "-c", "import os; os.kill(1, 19)"]).catch((error: { code: string }) => error);
    await until("it is stopped", async () => {
      const answer = await Promise.race([
        sandbox.exec("true").catch(() => undefined),
        new Promise((resolve) => setTimeout(resolve, 1_000, "late")),
      ]);
      return answer === "late";
    });
    expect((await neighbour.exec("echo alive")).stdout).toBe("alive\n");
    await sandbox.terminate();
    expect(await asked).toMatchObject({ code: expect.stringMatching(/./) });
    expect(recordOf(sandbox)?.state).not.toBe("running");
  });
});
