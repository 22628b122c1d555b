/** The example templates, built of their own files and used by their own programs, on images that stand in for Docker Hub's. */

import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import type { Sandbox, Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";
import { chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { template as browser } from "../../examples/templates/browser/template.ts";
import { template as dataScience } from "../../examples/templates/data-science/template.ts";
import { template as postgres } from "../../examples/templates/postgres/template.ts";
import { template as webApp } from "../../examples/templates/web-app/template.ts";
import { type EgressNetwork, hostNetwork } from "../../packages/engine/src/egress/network.ts";
import { ensureChromium, findChromium } from "../../scripts/lib/chromium.mjs";
import { canRunPackageScripts } from "../../scripts/lib/debian-root.mjs";
import { type Block, parsePage } from "../docs/markdown.ts";
import { isPrinted } from "../docs/output.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { onThisMachine } from "./package-hosts.ts";
import { pushStandIns } from "./stand-ins.ts";

const minutes = 60_000;
const examples = path.resolve(import.meta.dirname, "../../examples/templates");

/** A site outside: `shop.test` on port 80. Every other name is the host's. */
const site = createServer((_request, response) => response.setHeader("Content-Type", "text/html").end("<title>outside</title>"));
const siteAddress = "1.2.3.4";
const network: EgressNetwork = {
  ...hostNetwork,
  resolve: async (name, signal) => (name === "shop.test" ? [siteAddress] : hostNetwork.resolve(name, signal)),
  connect: (address, port, signal) =>
    address === siteAddress
      ? hostNetwork.connect("127.0.0.1", (site.address() as AddressInfo).port, signal)
      : hostNetwork.connect(address, port, signal),
};

/** Without it there are no images to build on. */
const canMakeImages = canRunPackageScripts();

let registry: Registry;
let live: LiveServer;
let folder: string;
beforeAll(async () => {
  if (!canMakeImages) return;
  site.listen(0, "127.0.0.1");
  await once(site, "listening");
  registry = await startRegistry();
  await pushStandIns(registry);
  live = await startLiveServer("real", network, { mirrors: { "docker.io": [registry.host] } });
  folder = mkdtempSync(path.join(os.tmpdir(), "mitos-examples-"));
}, 15 * minutes);
beforeEach(({ skip }) => {
  skip(!canMakeImages, "this user cannot run the scripts of Debian's packages: neither root nor user ids to map in /etc/subuid");
});
afterEach(async () => {
  if (!canMakeImages) return;
  const left = live.engine.list().map(({ id }) => id);
  await Promise.all(left.map((id) => live.engine.terminate(id)));
  expect(left).toEqual([]);
});
afterAll(async () => {
  if (!canMakeImages) return;
  rmSync(folder, { recursive: true, force: true });
  await live?.close();
  site.closeAllConnections();
  site.close();
  await registry?.[Symbol.asyncDispose]();
});

async function build(name: string, template: Template): Promise<void> {
  if (!canMakeImages) return;
  const printed: string[] = [];
  try {
    await buildTemplate(name, await onThisMachine(template.toSpec()), {
      baseUrl: live.url,
      context: path.join(examples, name),
      onEvent: (event) => event.kind === "log" && printed.push(event.text),
    });
  } catch (error) {
    throw new Error(`${name} could not be built; its steps printed:\n${printed.join("").slice(-4096)}`, { cause: error });
  }
}

/** Runs an example's program as its README says. @returns what it printed */
async function runMain(name: string): Promise<string> {
  const env = { PATH: process.env.PATH, HOME: folder, MITOS_CONFIG_DIR: folder, MITOS_BASE_URL: live.url };
  const { stdout } = await promisify(execFile)(process.execPath, [path.join(examples, name, "main.ts")], { cwd: folder, env });
  return stdout;
}

/** Runs it and compares with what the README shows. */
async function expectAsShown(name: string): Promise<void> {
  const readme = path.join(examples, "README.md");
  const { blocks } = parsePage(readme, readFileSync(readme, "utf8"));
  const command = (block: Block) => block.language === "sh" && block.code.includes(`examples/templates/${name}/main.ts`);
  const shown = blocks[blocks.findIndex(command) + 1];
  expect(shown?.language).toBe("text");
  const printed = await runMain(name);
  expect(isPrinted({ line: 1, text: shown!.code, figuresVary: false }, printed), printed).toBe(true);
}

/** Width and height of a PNG. */
function sizeOfPng(png: Uint8Array): [number, number] {
  const bytes = Buffer.from(png);
  expect(bytes.subarray(0, 8).toString("latin1")).toBe("\x89PNG\r\n\x1a\n");
  return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
}

describe("data-science", () => {
  beforeAll(() => build("data-science", dataScience), 10 * minutes);

  it("draws a plot with the first code that a sandbox is given", async () => {
    await expectAsShown("data-science");
    const [width, height] = sizeOfPng(readFileSync(path.join(folder, "plot.png")));
    expect(Math.min(width, height)).toBeGreaterThan(100);
  });

  it("has its packages in memory when a sandbox wakes", async () => {
    await using sandbox = await live.create({ template: "data-science" });
    const { text } = await sandbox.runCode("import sys; sorted({'matplotlib.pyplot', 'numpy', 'pandas'} & set(sys.modules))");
    expect(text).toBe("['matplotlib.pyplot', 'numpy', 'pandas']");
  });
});

describe("web-app", () => {
  beforeAll(async () => {
    await ensureChromium();
    await build("web-app", webApp);
  }, 10 * minutes);

  it("serves a preview at once, and shows an edit in it", () => expectAsShown("web-app"));

  it("brings an edit into the page that a browser has open", async () => {
    const { path: executablePath, env } = findChromium()!;
    const opened = await chromium.launch({
      executablePath,
      env: { ...process.env, ...env, HOME: folder, TMPDIR: folder },
      args: ["--no-sandbox"],
    });
    try {
      await using sandbox = await live.create({ template: "web-app" });
      const page = await opened.newPage();
      await page.goto((await sandbox.preview(5173)).browserUrl!);
      const greeting = page.locator("#greeting");
      await expect.poll(() => greeting.textContent()).toBe("Hello from a sandbox");
      await sandbox.files.write("/app/src/greeting.js", 'export const greeting = "Hello from an edit";\n');
      await expect.poll(() => greeting.textContent()).toBe("Hello from an edit");
    } finally {
      await opened.close();
    }
  });
});

describe("browser", () => {
  beforeAll(() => build("browser", browser), 10 * minutes);

  it("opens a page, clicks in it and brings a picture out", async () => {
    await expectAsShown("browser");
    expect(sizeOfPng(readFileSync(path.join(folder, "page.png")))).toEqual([640, 360]);
  });

  it("visits what its network rules allow, and nothing else", async () => {
    await using sandbox = await live.create({ template: "browser", network: { allowDomains: ["shop.test"] } });
    const visit = async (url: string) => {
      const code = `await (async () => { const page = await browser.newPage(); await page.goto("${url}"); return page.title(); })()`;
      const { text, error } = await sandbox.runCode(code, { language: "javascript" });
      return error ? error.value : text;
    };
    expect(await visit("http://shop.test/")).toBe("'outside'");
    expect(await visit("https://example.com/")).toContain("ERR_TUNNEL_CONNECTION_FAILED");
  });

  it("is forked with the page that it has open, and each child goes on by itself", async () => {
    const javascript = { language: "javascript" };
    await using parent = await live.create({ template: "browser", network: { block: true } });
    const opening = `const page = await browser.newPage(); await page.setContent("<input autofocus>"); await page.keyboard.type("one ");`;
    expect((await parent.runCode(opening, javascript)).error).toBeNull();
    const [first, second] = await parent.fork(2);
    await using here = first!;
    await using there = second!;
    const typed = async (sandbox: Sandbox, text: string) => {
      const { text: value, error } = await sandbox.runCode(
        `await page.keyboard.type(${JSON.stringify(text)}); await page.locator("input").inputValue()`,
        javascript,
      );
      expect(error).toBeNull();
      return value;
    };
    const values = await Promise.all([typed(here, "and two"), typed(there, "and three"), typed(parent, "alone")]);
    expect(values).toEqual(["'one and two'", "'one and three'", "'one alone'"]);
  });
});

describe("postgres", () => {
  beforeAll(() => build("postgres", postgres), 10 * minutes);

  it("is forked with its data into databases that differ, and its own stays as it was", () => expectAsShown("postgres"));

  it("runs when a sandbox wakes: it was started once, for the template", async () => {
    await using one = await live.create({ template: "postgres" });
    await using other = await live.create({ template: "postgres" });
    const ask = async (sandbox: Sandbox, sql: string) =>
      (await sandbox.exec(["psql", "-h127.0.0.1", "-Upostgres", "-dshop", "-Atc", sql])).stdout;
    const started = await ask(one, "select pg_postmaster_start_time()");
    expect(started).toMatch(/^\d{4}-/);
    expect(await ask(other, "select pg_postmaster_start_time()")).toBe(started);
    // Each connection has a process of its own, which takes its random state from the system.
    const ids = await Promise.all([one, other].map((sandbox) => ask(sandbox, "select gen_random_uuid()")));
    expect(new Set(ids).size).toBe(2);
  });
});
