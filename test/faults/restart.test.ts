import { existsSync } from "node:fs";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type AgentRunError, Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { noTraces, Tracker } from "../support/traces.ts";
import { until } from "../support/until.ts";
import { accountOf, processesOf } from "./host-account.ts";
import { ServedDirectory } from "./served-directory.ts";

let directory: ServedDirectory;
beforeAll(async () => {
  directory = await ServedDirectory.open();
  await directory.api.createTemplate("python");
});
afterAll(() => directory[Symbol.asyncDispose]());

const at = (id: string) => new Sandbox({ id, endpoint: directory.server.url });

describe("a server that is killed while streams are open, and started again", () => {
  it("loses no byte of a process, a terminal, an exec or a cell that goes on", async () => {
    await directory.api.fork("python", "streams");
    const sandbox = at("streams");
    const lines = 150;
    // Each stops half-way until nobody reads any more, however long the others take to begin.
    const alone = "until [ -e /tmp/alone ]; do sleep 0.05; done";
    const counter = await sandbox.execBackground(
      `i=0; while [ $i -lt ${lines} ]; do i=$((i+1)); echo line $i; [ $i -ne 50 ] || ${alone}; sleep 0.02; done`,
    ).started;
    const flood = await sandbox.execBackground(`${alone}; seq 200000; echo end; exec sleep 1000`).started;
    let screen = "";
    const pty = await sandbox.createPty((data) => {
      screen += Buffer.from(data).toString();
    });
    await pty.sendInput("answer=41; echo ready-$((1+1))\n");
    const exec = sandbox.exec(`echo some > /tmp/progress; ${alone}; sleep 1; echo all > /tmp/finished; exec sleep 1000`);
    const code = `print('begun')\nimport subprocess, time\nsubprocess.run("${alone}", shell=True)\nfor i in range(50):\n  print(i)\n  time.sleep(0.02)\nfinished = 'yes'`;
    let printed = "";
    const cell = sandbox.runCode(code, {
      onStdout: (data) => {
        printed += data;
      },
    });
    const broken = Promise.allSettled([exec, cell]);

    let text = "";
    let offset = 0;
    const follow = (async () => {
      for await (const event of sandbox.connectProcess(counter).output()) {
        if (event.type !== "stdout") continue;
        text += Buffer.from(event.data).toString();
        offset = event.offset + event.data.length;
      }
    })().catch(() => undefined);
    await until(
      "all of them have begun",
      async () =>
        text.includes("line 10\n") &&
        screen.includes("ready-2") &&
        printed.includes("begun") &&
        (await sandbox.files.exists("/tmp/progress")),
    );
    await sandbox.exec("(sleep 1; touch /tmp/alone) > /dev/null 2>&1 &");
    await directory.server.kill();
    await Promise.all([follow, broken]);
    expect((await broken).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(text).not.toContain(`line ${lines}\n`);

    await directory.restart();
    const again = at("streams");
    for await (const event of again.connectProcess(counter).output({ stdoutFrom: offset })) {
      if (event.type === "gap") expect.unreachable("nothing was lost");
      if (event.type === "stdout") text += Buffer.from(event.data).toString();
      if (event.type === "exit") expect(event.exitCode).toBe(0);
    }
    expect(text).toBe(Array.from({ length: lines }, (_, index) => `line ${index + 1}\n`).join(""));

    const terminal = again.connectPty(
      pty.pid,
      (data) => {
        screen += Buffer.from(data).toString();
      },
      { offset: pty.offset },
    );
    await terminal.sendInput("echo is-$((answer+1))\n");
    await until("the terminal answers", () => screen.includes("is-42"));
    terminal.disconnect();
    await until("the exec has gone on", () => again.files.exists("/tmp/finished"));
    expect((await again.runCode("print(finished)")).logs.stdout.join("")).toBe("yes\n");

    // What nobody read in time is gone, and said to be.
    await until("the flood is over", async () => {
      const row = (await again.processes()).find(({ pid }) => pid === flood);
      return row?.stdoutBytes === floodText.length;
    });
    let kept = "";
    let gap: { from: number; to: number } | undefined;
    for await (const event of again.connectProcess(flood).output({ follow: false })) {
      if (event.type === "gap") gap = event;
      if (event.type === "stdout") {
        expect(event.offset).toBe((gap?.to ?? 0) + kept.length);
        kept += Buffer.from(event.data).toString();
      }
    }
    expect(gap).toMatchObject({ from: 0 });
    expect(kept).toBe(floodText.slice(gap!.to));
    await again.terminate();
  });
});

const floodText = `${Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join("")}end\n`;

describe("a request that is repeated with its Idempotency-Key", () => {
  it("gets what the first had made when the server was killed before it could note that", async () => {
    await directory.api.fork("python", "parent");
    const fork = async () => {
      const response = await fetch(`${directory.server.url}/v1/sandboxes/parent/fork`, {
        method: "POST",
        headers: { "Idempotency-Key": "two-children" },
        body: JSON.stringify({ count: 2 }),
      });
      expect(response.status).toBe(200);
      return ((await response.json()) as { children: { id: string }[] }).children.map(({ id }) => id);
    };
    const made = await fork();
    await directory.server.kill();
    // The moment between the two writes is too short to be met by a kill.
    const db = new DatabaseSync(path.join(directory.dataDir, "mitos.db"));
    expect(db.prepare("UPDATE idempotency SET resource = NULL WHERE key = 'two-children'").run().changes).toBe(1);
    db.close();
    await directory.restart();
    expect(await fork()).toEqual(made);
    expect((await directory.api.listSandboxes()).map(({ id }) => id).sort()).toEqual([...made, "parent"].sort());
    await at("parent").terminate({ subtree: true });
  });
});

describe("a deadline is a time, not a duration", () => {
  it("holds while no server lives, and the next one says so", async () => {
    await directory.api.fork("python", "short", { timeoutSeconds: 3 });
    const { machine, shim } = processesOf(directory.dataDir, accountOf(directory.dataDir).machineNames[0]!);
    await directory.server.kill();
    await until("its machine has ended", () => [machine, shim].every((pid) => !existsSync(`/proc/${pid}`)));
    await directory.restart();
    await expect(at("short").info()).rejects.toMatchObject({ status: 410, errorCause: expect.stringContaining("time-out") });
    expect(await directory.api.listSandboxes()).toEqual([]);
    expect(accountOf(directory.dataDir).machineNames).toEqual([]);
  });

  it("holds for a paused sandbox while no server lives", async () => {
    await directory.api.fork("python", "asleep", { timeoutSeconds: 3 });
    await at("asleep").pause();
    const { deadlineUnix } = await at("asleep").info();
    await directory.server.kill();
    await until("its time is over", () => Date.now() / 1000 > deadlineUnix! + 1);
    await directory.restart();
    await until("it has ended", async () => (await directory.api.listSandboxes()).length === 0);
    const pauses = () => accountOf(directory.dataDir).snapshots.filter((name) => name.startsWith("pause-"));
    await until("its snapshot is gone", () => pauses().length === 0);
  });

  it("holds over a time in which the host stood still", async () => {
    await directory.api.fork("python", "suspended", { timeoutSeconds: 8 });
    const { deadlineUnix } = await at("suspended").info();
    const names = accountOf(directory.dataDir).machineNames;
    const { machine, shim } = processesOf(directory.dataDir, names[0]!);
    // From the inside out: whoever wakes may end those inside of it at once.
    const everybody = [machine, shim, directory.server.child.pid!];
    for (const pid of everybody) process.kill(pid, "SIGSTOP");
    await until("its time is over", () => Date.now() / 1000 > deadlineUnix! + 1);
    for (const pid of everybody) process.kill(pid, "SIGCONT");
    await until("it has ended", async () => (await directory.api.listSandboxes()).length === 0, 5_000);
    await expect(at("suspended").info()).rejects.toMatchObject({ status: 410, errorCause: expect.stringContaining("time-out") });
  });
});

describe("a server that is told to stop", () => {
  it("finishes what is under way, leaves its sandboxes to the next one and exits with 0", async () => {
    await directory.api.fork("python", "kept");
    await at("kept").runCode("x = 41");
    await directory.api.fork("python", "paused");
    await at("paused").pause();
    const exec = at("kept").exec("echo begun > /tmp/begun; sleep 1; echo finished");
    await until("the exec runs", () => at("kept").files.exists("/tmp/begun"));
    const ended = directory.server.stop();
    expect((await exec).stdout).toBe("finished\n");
    expect(await ended).toMatchObject({ code: 0, err: expect.stringContaining("sandboxes run on") });
    await directory.restart();
    expect((await at("kept").runCode("print(x)")).logs.stdout.join("")).toBe("41\n");
    await at("paused").resume();
  });

  it("ends at once when it is told twice, and loses nothing by that either", async () => {
    const exec = at("kept")
      .exec("echo again > /tmp/again; sleep 1000")
      .catch((error: AgentRunError) => error);
    await until("the exec runs", () => at("kept").files.exists("/tmp/again"));
    const { child } = directory.server;
    child.kill("SIGTERM");
    await until("it drains", () => directory.server.seen.err.includes("stopping"));
    // Sooner, it would be the same key pressed once.
    await new Promise((resolve) => setTimeout(resolve, 350));
    const began = performance.now();
    expect(await directory.server.stop()).toMatchObject({ code: 130 });
    expect(performance.now() - began).toBeLessThan(3_000);
    expect(await exec).toMatchObject({ name: expect.stringContaining("Error") });
    await directory.restart();
    expect((await at("kept").runCode("print(x)")).logs.stdout.join("")).toBe("41\n");
  });

  it("ends all sandboxes with --ephemeral, running and paused, exits with 0 and leaves nothing", async () => {
    await using other = await ServedDirectory.open({ args: ["--ephemeral"] });
    const tracker = new Tracker(other.dataDir);
    const running = await Sandbox.create({ template: "base", baseUrl: other.server.url });
    await running.execBackground("trap '' TERM; while :; do sleep 1; done").started;
    await (await other.api.fork("base", "paused")).pause();
    expect(await other.server.stop()).toMatchObject({ code: 0, err: expect.stringContaining("ending all sandboxes") });
    expect({ ...tracker.find(), files: [] }).toEqual(noTraces);
    expect(accountOf(other.dataDir)).toMatchObject({ machineNames: [], snapshots: [], partial: [] });
    await other.restart();
    expect(await other.api.listSandboxes()).toEqual([]);
  });

  it("does the same when nobody reads any more what it says", async () => {
    await using other = await ServedDirectory.open({ args: ["--ephemeral"] });
    const tracker = new Tracker(other.dataDir);
    await Sandbox.create({ template: "base", baseUrl: other.server.url });
    other.server.child.stderr?.destroy();
    expect(await other.server.stop()).toMatchObject({ code: 0 });
    expect({ ...tracker.find(), files: [] }).toEqual(noTraces);
    await other.restart();
  });

  it("takes a fork that is under way to its end first", async () => {
    const fork = at("kept").fork(3, { id: "late" });
    await until("its children are on their way", () => accountOf(directory.dataDir).machineNames.length > 2);
    const [result, ended] = await Promise.all([fork.catch((error: AgentRunError) => error), directory.server.stop()]);
    expect(ended).toMatchObject({ code: 0 });
    await directory.restart();
    const children = (await directory.api.listSandboxes()).filter(({ id }) => id.startsWith("late"));
    expect(children).toHaveLength(Array.isArray(result) ? 3 : 0);
    for (const { id } of children) expect((await at(id).runCode("print(x)")).logs.stdout.join("")).toBe("41\n");
  });
});
