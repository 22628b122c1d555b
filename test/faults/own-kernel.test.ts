/** Programs that misbehave where their sandbox has a kernel and a disk of its own: what abuse.test.ts cannot ask of gVisor, or has another answer there. */

import { readFileSync } from "node:fs";
import path from "node:path";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { onlyOn } from "../support/only-on.ts";
import { until } from "../support/until.ts";

onlyOn("microvm", "gVisor sandboxes have neither: see abuse");

let live: LiveServer;
beforeAll(async () => {
  live = await startLiveServer();
});
afterAll(() => live.close());

const fixture = (name: string) => readFileSync(path.join(import.meta.dirname, "../fixtures", name));

async function output(sandbox: Sandbox, command: string | readonly string[]): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(command, { timeoutSeconds: 60 });
  expect(exitCode, stderr).toBe(0);
  return stdout.trim();
}

it("a fork bomb in a user namespace of its own is bound by the sandbox's limit", async () => {
  await using sandbox = await live.create({ resources: { processesMax: 64 } });
  await sandbox.files.write("/workspace/fork-bomb.sh", fixture("fork-bomb.sh"));
  let told = "";
  const bomb = sandbox.execBackground(["unshare", "-Ur", "sh", "/workspace/fork-bomb.sh"], {
    onStderr: (data) => {
      told = (told + Buffer.from(data).toString()).slice(-1000);
    },
  });
  await bomb.started;
  await until("it is refused", () => told.includes("Cannot fork"), 100_000);
  // What the agent starts still starts.
  expect(await output(sandbox, ["cat", "/proc/1/comm"])).toBe("mitos-guest");
  expect((await sandbox.info()).state).toBe("running");
});

it("a disk that is full is told to whoever writes, and takes files again when there is room", async () => {
  await using sandbox = await live.create();
  await sandbox.files.write("/workspace/abuse.py", fixture("abuse.py"));
  // All but the last 64 MiB are taken without being written.
  const take = `
import os
room = os.statvfs("/var/tmp")
with open("/var/tmp/taken", "wb") as file:
  os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - (64 << 20))
print("taken")`;
  expect(await output(sandbox, ["python3", "-c", take])).toBe("taken");
  const filled = await sandbox.exec(["python3", "/workspace/abuse.py", "disk_filler"], { timeoutSeconds: 100 });
  expect(filled).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("No space left on device") });
  expect((await sandbox.info()).state).toBe("running");
  const again = "rm /var/tmp/taken /var/tmp/filler && echo kept > /var/tmp/file && sync && cat /var/tmp/file";
  expect(await output(sandbox, again)).toBe("kept");
});

it("nobody stops the agent, which is the kernel's first process", async () => {
  await using sandbox = await live.create();
  expect(await output(sandbox, ["python3", "-c", "import os; os.kill(1, 19); print('sent')"])).toBe("sent");
  expect(await output(sandbox, "grep State: /proc/1/status")).not.toContain("stopped");
  expect(await output(sandbox, "echo well")).toBe("well");
});
