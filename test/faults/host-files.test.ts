import { appendFileSync, chmodSync, copyFileSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { onlyOn } from "../support/only-on.ts";
import { ServedDirectory } from "./served-directory.ts";

const isRoot = process.getuid?.() === 0;
const isPossible = isRoot && engineUnderTest === "gvisor";

describe("a host package that is upgraded under a host template", () => {
  onlyOn("gvisor", "a microVM sees no file of the host");
  // Machines see the host's /usr. The name is nobody else's.
  const library = `/usr/local/share/mitos-fault-${process.pid}.py`;
  /** Has the library open, as a program has its libraries mapped, and tells over HTTP what it reads in it now. */
  const program = `
import http.server
library = open("${library}")
class Tell(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    library.seek(0)
    body = library.read().encode()
    self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
  def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8000), Tell).serve_forever()`;
  const workload = { command: ["python3", "-c", program], ready: { port: 8000, timeoutSeconds: 30 } };
  const ask = `python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8000").read().decode())'`;
  const told = async (sandbox: Sandbox) => (await sandbox.exec(ask)).stdout.trim();

  let directory: ServedDirectory;
  beforeAll(async () => {
    if (!isPossible) return;
    writeFileSync(library, "version 1");
    directory = await ServedDirectory.open();
  });
  afterAll(async () => {
    if (!isPossible) return;
    await directory[Symbol.asyncDispose]();
    rmSync(library, { force: true });
  });

  it("makes templates anew, and lets no paused or running sandbox be copied with other files than it uses", async ({ skip }) => {
    skip(!isRoot, "only root can change a file below /usr");
    await directory.api.createTemplate("with-library", { workload });
    const [paused, running] = [await directory.api.fork("with-library", "paused"), await directory.api.fork("with-library", "running")];
    const child = (await running.fork(1, { id: "child" }))[0]!;
    for (const sandbox of [paused, running, child]) expect(await told(sandbox)).toBe("version 1");
    await paused.pause();

    writeFileSync(`${library}.dpkg-new`, "version 2");
    renameSync(`${library}.dpkg-new`, library);

    const fresh = await directory.api.fork("with-library", "fresh");
    expect(await told(fresh)).toBe("version 2");
    expect(await told((await fresh.fork(1))[0]!)).toBe("version 2");

    const refused = {
      code: "snapshot_incompatible",
      status: 409,
      errorCause: expect.stringContaining(library),
      remediation: expect.stringMatching(/template|earlier/),
    };
    await expect(paused.resume()).rejects.toMatchObject(refused);
    await expect(paused.fork(1)).rejects.toMatchObject(refused);
    expect((await paused.info()).state).toBe("paused");
    // What runs goes on with the file that it has open, and cannot be saved: its copies would find another one at that place.
    for (const sandbox of [running, child]) {
      expect(await told(sandbox)).toBe("version 1");
      await expect(sandbox.fork(1)).rejects.toMatchObject(refused);
      await expect(sandbox.pause()).rejects.toMatchObject(refused);
      expect(await told(sandbox)).toBe("version 1");
      expect((await sandbox.info()).state).toBe("running");
    }
    await directory.crash();
    expect(await told(new Sandbox({ id: "running", endpoint: directory.server.url }))).toBe("version 1");
    expect(await directory.api.listSandboxes()).toHaveLength(5);
  });
});

describe("an agent that was built anew", () => {
  it("serves running sandboxes and rebuilds templates, and refuses paused ones of the earlier agent until that is back", async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-guest-"));
    const rebuilt = path.join(folder, "mitos-guest");
    copyFileSync((await findGuest(undefined)).path, rebuilt);
    appendFileSync(rebuilt, "\n");
    chmodSync(rebuilt, 0o755);
    {
      await using directory = await ServedDirectory.open();
      const at = (id: string) => new Sandbox({ id, endpoint: directory.server.url });
      await Sandbox.create({ id: "runs", template: "base", baseUrl: directory.server.url });
      await directory.api.fork("base", "sleeps");
      for (const id of ["runs", "sleeps"]) await at(id).exec(`echo ${id} > kept`);
      await at("sleeps").pause();
      await directory.server.stop();

      await directory.restart({ env: { MITOS_GUEST: rebuilt } });
      expect((await at("runs").exec("cat kept")).stdout).toBe("runs\n");
      expect((await (await at("runs").fork(1))[0]!.exec("cat kept")).stdout).toBe("runs\n");
      await at("runs").pause();
      await at("runs").resume();
      expect((await at("runs").exec("cat kept")).stdout).toBe("runs\n");
      await directory.api.fork("base", "fresh");
      expect((await at("fresh").exec("echo here")).stdout).toBe("here\n");
      await expect(at("sleeps").resume()).rejects.toMatchObject({
        code: "snapshot_incompatible",
        errorCause: expect.stringContaining("another guest agent"),
        remediation: expect.stringMatching(/./),
      });
      expect((await at("sleeps").info()).state).toBe("paused");
      await directory.server.stop();

      await directory.restart();
      await at("sleeps").resume();
      expect((await at("sleeps").exec("cat kept")).stdout).toBe("sleeps\n");
    }
    rmSync(folder, { recursive: true });
  });
});
