import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Ended, start } from "../../packages/cli/src/testing.ts";
import { debian } from "../support/base-image.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { type Registry, startRegistry } from "../support/registry.ts";

// Templates as users of the command line make them: of a real Debian in a real registry, in real sandboxes.
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-cli-templates-"));
let server: LiveServer;
let registry: Registry;
let image: string;

const begin = (...args: string[]) => start(args, { HOME: dir, MITOS_BASE_URL: server.url, LC_ALL: "C.UTF-8" });
const mitos = (...args: string[]): Promise<Ended> => begin(...args).ended;
const put = (name: string, content: string) => {
  mkdirSync(path.dirname(path.join(dir, name)), { recursive: true });
  writeFileSync(path.join(dir, name), content);
};

beforeAll(async () => {
  registry = await startRegistry();
  image = await registry.push(await debian("python"), "team/python:1");
  server = await startLiveServer();
});
afterAll(async () => {
  await server?.close();
  await registry?.[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true });
});

describe("a template of a Dockerfile", () => {
  const build = (...more: string[]) =>
    mitos(
      "template",
      "build",
      "--name",
      "app",
      "--dockerfile",
      path.join(dir, "Dockerfile"),
      "--context",
      path.join(dir, "context"),
      ...more,
    );
  const tags = ({ out }: Ended) => out.split("\n").filter((line) => /^\[(BUILD|CACHED)/.test(line) && line.includes("step"));

  it("is built of an image, of files and of what its steps do", async () => {
    put("context/app/main.py", "print('served')\n");
    put("context/app/secret.key", "secret");
    put("context/settings.txt", "one");
    put("context/.dockerignore", "**/*.key");
    put(
      "Dockerfile",
      `FROM ${image}
ARG COLOUR=red
WORKDIR /srv/app
COPY app .
COPY settings.txt /srv/app
ENV PATH="/srv/app/bin:$PATH" COLOUR=$COLOUR
RUN mkdir bin && printf '#!/bin/sh\\necho "$COLOUR"' > bin/colour && chmod +x bin/colour && colour
RUN ["sh", "-c", "echo second > second.txt"]
USER nobody
`,
    );
    const built = await build("--build-arg", "COLOUR=blue");
    expect(built).toMatchObject({ code: 0, err: "" });
    expect(built.out).toMatch(/^ {5}5 \| blue$/m);
    expect(built.out).toMatch(/Template "app" ready in .*; 0 of 8 steps cached; \d+ layers, [\d.]+ MiB; snapshot/);
    const inside = await mitos("run", "--pool", "app", "id -un; pwd; ls; colour; cat settings.txt second.txt; python3 main.py; echo $PATH");
    expect(inside).toMatchObject({ code: 0, err: "" });
    expect(inside.out.split("\n")).toEqual([
      "nobody",
      "/srv/app",
      "bin",
      "main.py",
      "second.txt",
      "settings.txt",
      "blue",
      "onesecond",
      "served",
      expect.stringMatching(/^\/srv\/app\/bin:\/usr\/local\/sbin:/),
      "",
    ]);
  });

  it("takes the steps before the first change from what is stored", async () => {
    put("context/settings.txt", "two");
    const changed = await build("--build-arg", "COLOUR=blue");
    expect(changed.code).toBe(0);
    expect(tags(changed).map((line) => line.replace(/ step (\d+) (\w+).*/, " $1 $2"))).toEqual([
      "[CACHED] 0 workdir",
      "[CACHED] 1 copy",
      "[BUILD ] 2 copy",
      "[BUILD ] 3 env",
      "[BUILD ] 4 env",
      "[BUILD ] 5 run",
      "[BUILD ] 6 run",
      "[BUILD ] 7 user",
    ]);
    expect((await mitos("run", "--pool", "app", "cat settings.txt")).out).toBe("two");
    const other = await build("--build-arg", "COLOUR=blue", "--name", "other");
    expect(tags(other).every((line) => line.startsWith("[CACHED]"))).toBe(true);
    expect(other.out).toMatch(/Template "other" ready in .*; 8 of 8 steps cached;/);
    expect(other.out).not.toContain("[SEND  ]");
  });

  it("that fails names the step, keeps the old template, and its log can be read again", async () => {
    put("broken", `FROM ${image}\nRUN echo before; echo wrong >&2; exit 3\n`);
    const failed = await mitos("template", "build", "--name", "app", "--dockerfile", path.join(dir, "broken"));
    expect(failed.code).toBe(1);
    expect(failed.out).toContain("[BUILD ] step 0 run echo before");
    expect(failed.out).toContain("     0 | wrong");
    expect(failed.err).toMatch(/^error: a template could not be built\ncause: step .*exit code 3/);
    const logs = await mitos("template", "logs", "app");
    expect(logs.out).toContain("     0 | before");
    expect(logs.err).toContain("exit code 3");
    expect((await mitos("run", "--pool", "app", "cat settings.txt")).out).toBe("two");
  });

  it("is listed with what it is made of, and counted on the disk", async () => {
    const { out } = await mitos("template", "ls");
    expect(out).toMatch(/^app +yes +build +127\.0\.0\.1:\d+\/team\/python:1 +[\d.]+ MiB +\d+[sm]$/m);
    expect(out).toMatch(/^base +the server's own root$/m);
    const usage = JSON.parse((await mitos("du", "--json")).out);
    expect(usage.templates).toContainEqual(expect.objectContaining({ id: "app", snapshotBytes: expect.any(Number) }));
    expect(usage.totals.layers.bytes).toBeGreaterThan(usage.templates[0].ownBytes);
    expect((await mitos("du")).out).toMatch(/^TEMPLATE +OWN +SHARED +SNAPSHOT\n/);
  });

  it("is pushed as an image, from which others are made", async () => {
    const reference = `${registry.host}/team/app:1`;
    const pushed = await mitos("template", "push", "app", reference);
    expect(pushed).toMatchObject({
      code: 0,
      err: "",
      out: expect.stringMatching(/pushed app to .*\/team\/app:1 \(sha256:[0-9a-f]{64}\)\n$/),
    });
    expect(await mitos("template", "pull", reference)).toMatchObject({ code: 0, out: expect.stringContaining(`pulled ${reference}`) });
    expect((await mitos("run", "--pool", reference, "pwd; colour")).out).toBe("/srv/app\nblue\n");
  });
});

it("an image is a template by its name, and a name that means nothing is none", async () => {
  expect((await mitos("run", "--pool", image, "python3 -c 'print(6 * 7)'")).out).toBe("42\n");
  expect(await mitos("run", "--pool", "pyton", "true")).toMatchObject({ code: 3, err: expect.stringContaining("Did you mean python?") });
  expect(await mitos("run", "--pool", `${registry.host}/team/none:1`, "true")).toMatchObject({ code: 3, out: "" });
});

it("a build that is canceled leaves nothing that runs", async () => {
  put("long", `FROM ${image}\nRUN echo begun; exec sleep 1000\n`);
  const building = begin("template", "build", "--name", "long", "--dockerfile", path.join(dir, "long"));
  await new Promise<void>((resolve) => {
    building.child.stdout.on("data", () => building.seen.out.includes(" | begun") && resolve());
    building.child.on("close", () => resolve());
  });
  building.child.kill("SIGINT");
  expect(await building.ended).toMatchObject({ code: 130, err: expect.stringContaining("the build of long was canceled") });
  // The command ends at once; its server ends the build's machine first.
  await expect.poll(async () => (await mitos("template", "ls")).out).not.toMatch(/^long /m);
});

it("prune removes what nothing uses", async () => {
  for (const name of ["app", "other"]) expect((await mitos("template", "rm", name)).code).toBe(0);
  expect(await mitos("prune", "--yes")).toMatchObject({ code: 0, out: expect.stringMatching(/^removed [1-9][\d.]* \w+\n$/) });
  expect((await mitos("run", "--pool", image, "echo still here")).out).toBe("still here\n");
});
