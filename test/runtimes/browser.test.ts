import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ensureChromium, findChromium } from "../../scripts/lib/chromium.mjs";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { type Consumer, makeConsumer } from "./consumer.ts";
import { seenByTheScenario } from "./expected.ts";
import { type SameOrigin, serveSameOrigin } from "./same-origin.ts";

// The SDK as it is published, in a page of a real browser, against the real engine. The page's web server forwards to Mitos.
let live: LiveServer;
let consumer: Consumer;
let site: SameOrigin;
let browser: Browser;
let page: Page;
const profile = mkdtempSync(path.join(os.tmpdir(), "mitos-chromium-"));
const problems: string[] = [];

beforeAll(async () => {
  await ensureChromium();
  [live, consumer] = await Promise.all([startLiveServer(), makeConsumer()]);
  site = await serveSameOrigin(live.url, {
    "/": inProject("page.html"),
    "/page.js": inProject("page.js"),
    "/scenario.js": inProject("scenario.js"),
    ...modules(),
  });
  browser = await launchChromium();
  page = await browser.newPage();
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(site.url);
});
afterAll(async () => {
  await browser?.close();
  await site?.[Symbol.asyncDispose]();
  await consumer?.[Symbol.asyncDispose]();
  await live?.close();
  rmSync(profile, { recursive: true, force: true });
});

describe("a page whose own host forwards to the server", () => {
  it("does with the SDK what every other runtime does", async () => {
    expect(await inPage("scenario", { baseUrl: site.url })).toEqual(seenByTheScenario);
    expect(problems).toEqual([]);
  });

  it("uploads a stream, which a browser sends over HTTP/2 only, by gathering it first", async () => {
    await using sandbox = await live.create();
    await inPage("uploadStream", sandbox.id, "/workspace/streamed");
    expect(await sandbox.files.read("/workspace/streamed")).toBe("one two");
  });

  it("kills a program when its iteration is left, and when the page goes", async () => {
    await using sandbox = await live.create();
    const running = async () => (await sandbox.exec("pgrep -fc '^sleep 471[12]$' || true")).stdout.trim();
    await inPage("startAndLeave", sandbox.id, "sleep 4711");
    await expect.poll(running).toBe("0");
    const other = await browser.newPage();
    await other.goto(site.url);
    await other.evaluate(call("start", sandbox.id, "sleep 4712"));
    expect(await running()).toBe("1");
    await other.close();
    await expect.poll(running).toBe("0");
  });

  it("is told that a base URL is missing when it gives none, also with a key", async () => {
    const missing = { name: "AgentRunError", code: "missing_base_url", remediation: expect.stringContaining("location.origin") };
    expect(await inPage("refusedCreation", {})).toEqual(missing);
    expect(await inPage("refusedCreation", { apiKey: "mitos_live_key" })).toEqual(missing);
  });
});

it("a page of another origin reaches nothing of a server", async () => {
  const before = live.engine.list().length;
  expect(await inPage("refusedCreation", { baseUrl: live.url })).toMatchObject({ code: "transport_error" });
  expect(live.engine.list()).toHaveLength(before);
});

function inPage(name: string, ...args: readonly unknown[]): Promise<unknown> {
  return page.evaluate(call(name, ...args));
}

/** An expression for the page: a function of page.js with arguments. */
function call(name: string, ...args: readonly unknown[]): string {
  return `page.${name}(${args.map((value) => JSON.stringify(value)).join(", ")})`;
}

function inProject(file: string): string {
  return path.join(consumer.dir, file);
}

/** Every module of the package, under /sdk/. */
function modules(): Record<string, string> {
  const folder = inProject("node_modules/@mitos/sdk");
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".js"));
  return Object.fromEntries(files.map((file) => [`/sdk/${file}`, path.join(folder, file)]));
}

function launchChromium(): Promise<Browser> {
  const { path: executablePath, env } = findChromium()!;
  return chromium.launch({
    executablePath,
    env: { ...process.env, ...env, TMPDIR: profile, HOME: profile },
    args: [
      "--no-sandbox", // root cannot have one
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
