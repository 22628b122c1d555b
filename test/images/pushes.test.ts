import { readdirSync } from "node:fs";
import { type BuildEvent, type Sandbox, Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { debian } from "../support/base-image.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { ImageServer } from "./image-server.ts";

let registry: Registry;
let server: ImageServer;
let base: string;

beforeAll(async () => {
  registry = await startRegistry();
  server = await ImageServer.start();
  base = await registry.push(await debian("base"), "debian:base");
});

afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
});

const recipe = () =>
  new Template()
    .fromImage(base)
    .run(
      "useradd --uid 1500 --create-home maker && mkdir /made && chown maker /made && echo kept > /made/by-step && ln /made/by-step /made/again",
    )
    // Of a program that no test goes by: what the bit does is not the same on every engine.
    .run("rm /usr/bin/env && chmod 4755 /usr/bin/nproc && ln -s /made /link && mkfifo /made/pipe")
    .env("MADE", "by a build")
    .workdir("/made")
    .user("maker");

async function output(sandbox: Sandbox, command: string, user?: string): Promise<string> {
  const { exitCode, stdout, stderr } = await sandbox.exec(command, user ? { user } : {});
  expect(exitCode, `${command}: ${stderr}`).toBe(0);
  return stdout.trimEnd();
}

/** What can be told apart in a root: kind, mode, owner, size and target of everything that the steps may have touched. */
const inventory =
  "cd / && find . -xdev -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o -path ./tmp -prune -o -path ./run -prune -o -path ./etc/hosts -prune -o -path ./etc/hostname -prune -o -path ./etc/machine-id -prune -o -path ./opt/mitos -prune -o -type f -printf '%p %y %m %U %G %s %l\\n' -o ! -type d -printf '%p %y %m %U %G %l\\n' | sort";

describe("a template that was built on an image", () => {
  it("goes to a registry as an image, and another server makes the same sandboxes of it", async () => {
    await buildTemplate("made", recipe(), { server: server.api });
    const sandbox = await server.create("made");
    expect(await output(sandbox, "id -un; pwd; cat by-step again; echo $MADE")).toBe("maker\n/made\nkept\nkept\nby a build");
    const files = await output(sandbox, inventory, "root");
    await sandbox.terminate();

    registry.forgetRequests();
    const pushed = await server.api.pushTemplate("made", `${registry.host}/team/made:1`);
    expect(pushed.reference).toBe(`${registry.host}/team/made:1`);
    // The base is in the registry already, in the form in which it came.
    expect(
      registry.requests.filter(({ method, path }) => method === "PATCH" || (method === "PUT" && path.includes("uploads"))).length,
    ).toBeLessThan(8);
    const [baseLayer] = (await debian("base")).layers;
    expect(registry.requests.map(({ path }) => path).join("\n")).toContain(`mount=${encodeURIComponent(baseLayer!.digest)}`);

    await using other = await ImageServer.start();
    const far = await other.create(pushed.reference);
    expect(await output(far, "id -un; pwd; cat by-step again; echo $MADE")).toBe("maker\n/made\nkept\nkept\nby a build");
    expect(await output(far, "stat -c '%a %U' /usr/bin/nproc; readlink /link; ls /usr/bin/env 2>&1 || true", "root")).toMatch(
      /^4755 root\n\/made\n.*No such file/,
    );
    expect(await output(far, inventory, "root")).toBe(files);
    await far.terminate();
    expect(readdirSync(other.layersDir)).toContain(baseLayer!.diffId.replace("sha256:", ""));
  });

  it("is made of the store where nothing has changed, and runs what comes after a change", async () => {
    const steps = async (name: string, template: Template) => {
      const events: BuildEvent[] = [];
      await buildTemplate(name, template, { server: server.api, onEvent: (event) => event.kind !== "context" && events.push(event) });
      return events.flatMap((event) => (event.kind === "step" && event.state !== "running" ? [`${event.type} ${event.state}`] : []));
    };
    const random = async (name: string) => {
      const sandbox = await server.create(name);
      const value = await output(sandbox, "cat /made/random");
      await sandbox.terminate();
      return value;
    };
    const chancy = () => recipe().user("root").run("head -c 16 /dev/urandom | od -An -tx1 > /made/random");
    const before = ["run", "run", "env", "workdir", "user", "user"].map((type) => `${type} cached`);
    await steps("first", chancy());
    expect(await steps("second", chancy())).toEqual([...before, "run cached"]);
    expect(await random("second")).toBe(await random("first"));
    expect(await steps("third", chancy().run("echo more > /made/more"))).toEqual([...before, "run cached", "run done"]);
    expect(await random("third")).toBe(await random("first"));
    await buildTemplate("anew", chancy(), { server: server.api, noCache: true });
    expect(await random("anew")).not.toBe(await random("first"));
  });
});

describe("the disk", () => {
  it("counts what is shared once, and gives back what nothing needs any more", async () => {
    await buildTemplate("one", recipe().run("head -c 3000000 /dev/zero > /made/large"), { server: server.api });
    await buildTemplate("two", recipe(), { server: server.api });
    const { templates, totals } = await server.api.diskUsage();
    const of = (id: string) => templates.find((template) => template.id === id)!;
    expect(of("one").rootBytes - of("two").rootBytes).toBeGreaterThanOrEqual(3_000_000);
    expect(of("one").ownBytes).toBeGreaterThanOrEqual(3_000_000);
    expect(of("two").ownBytes).toBe(0);
    expect(totals!.layers.bytes).toBeLessThan(of("one").rootBytes + of("two").rootBytes);
    const running = await server.create("two");
    for (const { id } of await server.api.listTemplates()) await server.api.deleteTemplate(id);
    const layersBefore = readdirSync(server.layersDir).length;
    expect(await server.api.prune()).toBeGreaterThanOrEqual(3_000_000);
    expect(readdirSync(server.layersDir).length).toBeLessThan(layersBefore);
    // What a sandbox is made of stays as long as it runs, and what may be made of it.
    const [child] = await running.fork(1);
    expect(await output(child!, "cat /made/by-step")).toBe("kept");
    await Promise.all([running, child!].map((sandbox) => sandbox.terminate()));
    await expect
      .poll(async () => {
        await server.api.prune();
        return readdirSync(server.layersDir);
      })
      .toEqual([]);
    expect((await server.api.diskUsage()).totals).toMatchObject({
      layers: { count: 0, bytes: 0, unusedBytes: 0 },
      snapshots: { bytes: 0 },
    });
    const sandbox = await server.create(base);
    expect(await output(sandbox, "head -c 17 /etc/os-release")).toBe('PRETTY_NAME="Debi');
    await sandbox.terminate();
  });
});
