import { execFile } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

// The samples of the published pages, in TypeScript: each is a program of its own, and prints what is written here.
const outputs: Record<string, readonly string[]> = {
  "errors.ts": [
    "not_found true false",
    "invalid_sandbox_id false false",
    "timeout_too_large false true",
    "invalid_input false false",
    "transport_error false false",
  ],
  "exec.ts": ["4", "", '3 "out\\n" "err\\n" true', "['task.py', 'two words', '$HOME']", "", "exec_timeout 1"],
  "files.ts": [
    "draft",
    "Uint8Array(3) [ 0, 1, 2 ]",
    "data.bin false 3",
    "plan.txt false 5",
    "results true true",
    "true",
    "false",
    "not_found 404",
  ],
  "fork.ts": ["a.txt plan.txt ", "b.txt plan.txt ", "2 1", "sandbox-sample-child"],
  "lifecycle.ts": ["true", "sandbox_not_running true", "'in memory'", "docs", "true", "IdleTimeoutError idle_timeout", "ok true"],
  "options.ts": ["sandbox-sample-options python true true", "shows its key: false"],
  "ports.ts": ["200 served from the sandbox", "invalid_input"],
  "quickstart.ts": ["hello", ""],
  "run-code.ts": ["2", "12.0", "live: hi", "42 [ 'hi\\n' ] true", 'Rich() <b>bold</b> iVBORw== {"a": 1} undefined', "ValueError bad null"],
  "server.ts": ["sample true true", "sample-first sample-first", "2", "[ 'sample-first' ]"],
  "streaming.ts": ["{ stdout: 'out', stderr: 'err' }", "stdout go?", "stdout gone", "exit 0", "running true", "building all false"],
  "template.ts": [
    '{"image":"python:3.12","buildSteps":[{"type":"workdir","workdir":"/app"},{"type":"copy","source":"app/","dest":"/app"},{"type":"env","envName":"PORT","envValue":"8080"},{"type":"run","run":"pip install -r requirements.txt"}],"command":["python","app.py"],"resources":{"cpu":"2","memory":"1Gi"}}',
    '{"name":"app"} mitos-default-python-3.12',
  ],
  "terminal.ts": ["7 true true"],
};

/** Lists whose order is not promised. */
const unordered = new Set(["files.ts"]);
const folder = path.join(import.meta.dirname, "samples");

let live: LiveServer;
beforeAll(async () => {
  live = await startLiveServer();
});
afterAll(() => live.close());

it("every sample is here", () => {
  expect(readdirSync(folder).sort()).toEqual(Object.keys(outputs).sort());
});

it.each(Object.keys(outputs))("%s prints what its page says", async (sample) => {
  const env = { PATH: process.env.PATH, NO_COLOR: "1", MITOS_BASE_URL: live.url, MITOS_CONFIG_DIR: live.dataDir };
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [path.join(folder, sample)], { env });
  expect(stderr).toBe("");
  const order = (lines: readonly string[]) => (unordered.has(sample) ? [...lines].sort() : lines);
  expect(order(stdout.replace(/\n$/, "").split("\n"))).toEqual(order(outputs[sample]!));
  expect(live.engine.list({ state: "running" })).toEqual([]);
});
