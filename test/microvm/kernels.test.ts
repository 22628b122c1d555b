/** The kernels' own tests, with what a virtual machine has of interpreters, processor and Linux. */

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { isolationUnderTest, patience } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

const kernels = path.join(import.meta.dirname, "../../guest/kernels");
let server: LiveServer;
let sandbox: Sandbox;

beforeAll(async () => {
  server = await startLiveServer();
  sandbox = await server.create();
  const files = readdirSync(kernels, { withFileTypes: true }).filter((entry) => entry.isFile());
  for (const { name } of files) await sandbox.files.write(`/workspace/kernels/${name}`, readFileSync(path.join(kernels, name)));
}, 240_000);
afterAll(() => server?.close());

// With IPython, numpy and matplotlib they run on the host alone: an emulated processor takes minutes to import those, and each test does.
it.for(["PythonCase", "BashCase", "JavaScriptCase"])(
  "the kernels pass their own tests in a virtual machine: %s",
  { timeout: 420_000 },
  async (suite, { skip }) => {
    const isTooSlow = suite === "JavaScriptCase" && isolationUnderTest === "microvm-tcg";
    skip(isTooSlow, "not run on microvm-tcg: an emulated processor takes ten seconds to start Node, and each of these tests does");
    const { stderr, exitCode } = await sandbox.exec(["python3", "-m", "unittest", "-q", `test_kernels.${suite}`], {
      cwd: "/workspace/kernels",
      env: { PYTHONDONTWRITEBYTECODE: "1", MITOS_TEST_NODE: "node", MITOS_TEST_SLOWNESS: String(patience) },
      timeoutSeconds: 400,
    });
    expect(exitCode, stderr).toBe(0);
    expect(Number(/^Ran (\d+) tests?/m.exec(stderr)?.[1]), stderr).toBeGreaterThan(0);
    expect(stderr).not.toContain("skipped=");
  },
);
