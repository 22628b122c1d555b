/** Builds of real images on one real server that asks for keys. What each route answers is in packages/server/src/routes. */

import { createHash } from "node:crypto";
import type { KeyRequest } from "@mitos/engine";
import { create } from "@mitos/sdk";
import { type RunningServer, startServer } from "@mitos/server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { collect, type LineStream, events as streamOf } from "../../packages/server/src/testing/harness.ts";
import { debian } from "../support/base-image.ts";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { tarOf } from "../support/tar.ts";

let live: LiveEngine;
let server: RunningServer;
let registry: Registry;
let image: string;

beforeAll(async () => {
  registry = await startRegistry();
  image = await registry.push(await debian("base"), "debian:base");
  live = await startLiveEngine();
  server = await startServer({ engine: live.engine, host: "127.0.0.1", port: 0, auth: true, log: quiet, version: "test" });
});
afterAll(async () => {
  await server.close();
  await live.close();
  await registry[Symbol.asyncDispose]();
});

function keyOf(owner: string, organisation = "acme"): string {
  const limits = {};
  const scopes: KeyRequest["scopes"] = ["read", "execute", "lifecycle"];
  return live.engine.keys.create({ name: owner, owner, organisation, scopes, ttlSeconds: 0, limits }).key;
}

const bearer = (apiKey: string) => ({ Authorization: `Bearer ${apiKey}` });

function ask(apiKey: string, method: string, path: string, body?: Uint8Array | string): Promise<Response> {
  return fetch(`${server.url}${path}`, {
    method,
    headers: { ...bearer(apiKey), Connection: "close" },
    ...(body === undefined ? {} : { body }),
  });
}

function build(apiKey: string, body: object, signal?: AbortSignal): Promise<LineStream> {
  return streamOf(server, "/v1/templates", { body, headers: bearer(apiKey), ...(signal ? { signal } : {}) });
}

describe("a build on a server with keys", () => {
  const tar = tarOf({ "note.txt": "from the context" });
  const context = `sha256:${createHash("sha256").update(tar).digest("hex")}`;
  const run = (command: string) => ({ type: "run", run: command });
  const definition = (id: string) => ({
    id,
    image,
    build_steps: [
      { type: "copy", source: "note.txt", dest: "/srv/", context },
      { type: "env", env_name: "LEVEL", env_value: "3" },
      run("echo building at level $LEVEL; cp /srv/note.txt /srv/copy.txt"),
    ],
  });

  it("takes files, tells of every step as it goes, and makes what its sandboxes then have", async () => {
    const alice = keyOf("alice");
    const missing = await build(alice, definition("app"));
    expect([missing.status, await collect(missing.lines)]).toMatchObject([
      404,
      [{ error: { code: "not_found", context: { digest: context } } }],
    ]);
    expect((await ask(alice, "PUT", `/v1/contexts/${context}`, tar)).status).toBe(200);
    expect((await ask(alice, "HEAD", `/v1/contexts/${context}`)).status).toBe(200);

    const { status, lines } = await build(alice, definition("app"));
    expect(status).toBe(200);
    const told = await collect(lines);
    expect(told.at(-1), JSON.stringify(told.at(-1))).toMatchObject({
      kind: "done",
      template: { id: "app", ready: true, source: { kind: "build", reference: image, layers: 3 } },
    });
    const layers = told.filter(({ kind }) => kind === "layer");
    expect(layers.map(({ state }) => state)).toEqual(expect.arrayContaining(["done"]));
    expect(told.filter(({ kind, state }) => kind === "step" && state === "done").map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(
      told
        .filter(({ kind }) => kind === "log")
        .map(({ text }) => text)
        .join(""),
    ).toContain("building at level 3");

    const sandbox = await create({ baseUrl: server.url, apiKey: alice, template: "app" });
    expect((await sandbox.exec("cat /srv/copy.txt; echo; echo $LEVEL")).stdout).toBe("from the context\n3\n");
    await sandbox.terminate();

    const later = await streamOf(server, "/v1/templates/app/events", { headers: bearer(keyOf("carol")) });
    expect((await collect(later.lines)).at(-1)).toMatchObject({ kind: "done", creation_time_ms: expect.any(Number) });
  });

  it("shares what its steps have made within the organisation, and with no other; nor is the template or its files another's", async () => {
    const eve = keyOf("eve", "other");
    expect((await ask(eve, "HEAD", `/v1/contexts/${context}`)).status).toBe(404);
    expect((await ask(eve, "GET", "/v1/templates/app/events")).status).toBe(404);
    expect(await (await ask(eve, "GET", "/v1/templates")).json()).toEqual([]);
    const states = async (apiKey: string, id: string) => {
      await ask(apiKey, "PUT", `/v1/contexts/${context}`, tar);
      const told = await collect((await build(apiKey, definition(id))).lines);
      return told.filter(({ kind, state }) => kind === "step" && state !== "running").map(({ type, state }) => `${type} ${state}`);
    };
    expect(await states(keyOf("carol"), "carols")).toEqual(["copy cached", "env cached", "run cached"]);
    expect(await states(eve, "eves")).toEqual(["copy done", "env done", "run done"]);
  });

  it("fails with the step and its output, in the stream, in the plain answer and afterwards", async () => {
    const alice = keyOf("alice");
    const broken = { id: "broken", image, build_steps: [run("echo about to fail >&2; exit 7")] };
    const told = await collect((await build(alice, broken)).lines);
    expect(told.at(-1)).toMatchObject({ kind: "failed", error: { code: "build_failed", cause: expect.stringContaining("step 0 (run") } });
    const plain = await ask(alice, "POST", "/v1/templates", JSON.stringify(broken));
    expect([plain.status, await plain.json()]).toEqual([422, { error: told.at(-1).error }]);
    const later = await streamOf(server, "/v1/templates/broken/events", { headers: bearer(alice) });
    const events = await collect(later.lines);
    expect(events.at(-1)).toMatchObject({ kind: "failed", error: { code: "build_failed" } });
    expect(events.map(({ text }) => text ?? "").join("")).toContain("about to fail");
  });

  it("is over when its client has left, and nothing of it is there", async () => {
    const alice = keyOf("alice");
    const client = new AbortController();
    const { lines } = await build(alice, { id: "left", image, build_steps: [run("echo waiting; sleep 1000")] }, client.signal);
    for await (const { text } of lines) if (text?.includes("waiting")) break;
    client.abort();
    await expect.poll(() => live.engine.listTemplates().some(({ id }) => id === "left")).toBe(false);
    const later = await streamOf(server, "/v1/templates/left/events?follow=true", { headers: bearer(alice) });
    expect((await collect(later.lines)).at(-1)).toMatchObject({ kind: "failed", error: { code: "canceled" } });
  });

  it("is refused for what is no image, by the name of it", async () => {
    const alice = keyOf("alice");
    const unknown = await ask(alice, "POST", "/v1/templates", JSON.stringify({ id: "no", image: `${registry.host}/debian:none` }));
    expect([unknown.status, await unknown.json()]).toMatchObject([404, { error: { code: "not_found" } }]);
    expect(await (await ask(alice, "GET", `/v1/names/${encodeURIComponent(image)}`)).json()).toEqual({
      name: image,
      means: "image",
      reference: image,
    });
    expect(await (await ask(alice, "GET", "/v1/names/nonsense")).json()).toEqual({ name: "nonsense", means: "nothing", reference: "" });
  });
});
