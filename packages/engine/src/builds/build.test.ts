import { readFile, truncate } from "node:fs/promises";
import path from "node:path";
import { MitosError, toSandboxId, toTemplateId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { BuildEvent, BuildOptions, BuildStep, TemplateRequest } from "../actions.ts";
import { Bench, ids, sandbox, template } from "../testing.ts";
import { digestOf, kinds } from "./testing.ts";

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
  bench.images.publish("tool:1", "files of tool", { env: { PATH: "/bin" }, workdir: "/srv", user: "app", entrypoint: ["serve"] });
});
afterEach(async () => {
  await bench[Symbol.asyncDispose]();
  expect(bench.driver.machines.size).toBe(0);
});

const run = (command: string): BuildStep => ({ kind: "run", command });

function make(id: string, change: Partial<TemplateRequest> = {}, options?: BuildOptions) {
  return bench.engine.createTemplate(template(id, change), options);
}

function eventsOf(id: string): Promise<BuildEvent[]> {
  return Array.fromAsync(bench.engine.buildEvents(toTemplateId(id), { follow: true }));
}

/** Programs wait in it until they are let go; tells when one is there. */
function gate(): { reached: Promise<void>; open: () => void; pass: (signal: AbortSignal) => Promise<number> } {
  const there = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  return {
    reached: there.promise,
    open: go.resolve,
    pass: async (signal) => {
      there.resolve();
      const gone = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      await Promise.race([go.promise, gone]);
      return 0;
    },
  };
}

describe("a template of an image", () => {
  it("boots a root of the image's layers, as its user, in its folder, with its environment", async () => {
    const made = await make("tool:1", { image: "tool:1" });
    expect(made).toMatchObject({
      ready: true,
      source: {
        kind: "image",
        reference: "docker.io/library/tool:1",
        digest: digestOf("manifest of files of tool"),
        layers: 1,
        rootBytes: 13,
      },
      warnings: [],
    });
    expect(bench.driver.booted.at(-1)?.root).toMatchObject({ kind: "layers", layers: [{ id: digestOf("files of tool") }] });
    expect(bench.seen.adoptions.at(-1)).toMatchObject({ env: { PATH: "/bin" }, user: "app", cwd: "/srv", templateId: "tool:1" });
    await bench.engine.create(sandbox("a", { template: toTemplateId("tool:1") }));
  });

  it("boots once more a machine that runs and says nothing, and no third time", async () => {
    let silent = 1;
    bench.onOpen = () => {
      if (silent-- > 0) throw new MitosError("unavailable", { cause: "HELLO_ACK did not come within 30000 ms" });
    };
    const boots = bench.driver.boots;
    expect(await make("tool:1", { image: "tool:1" })).toMatchObject({ ready: true });
    expect(bench.driver.boots).toBe(boots + 2);
    silent = 2;
    await expect(make("tool:2", { image: "tool:1" })).rejects.toMatchObject({ detail: { cause: expect.stringContaining("HELLO_ACK") } });
    expect(bench.driver.boots).toBe(boots + 4);
    expect(bench.driver.machines.size).toBe(0);
  });

  it("is one under the id of a reference that says no image", async () => {
    await expect(make("tool:1")).resolves.toMatchObject({ source: { kind: "image" } });
  });

  it("is not made for a name that means nothing, and leaves nothing", async () => {
    await expect(make("web", { image: "nosuch" })).rejects.toMatchObject({ code: "not_found", message: expect.stringContaining("nosuch") });
    await expect(make("web", { image: "tool:2" })).rejects.toMatchObject({ code: "not_found" });
    expect(bench.engine.listTemplates().map(({ id }) => id)).toEqual(["python"]);
  });

  it("is made of the host's files, and says so, for an unknown id without an image", async () => {
    expect(await make("web")).toMatchObject({ source: { kind: "host" }, warnings: [expect.stringContaining("web names no image")] });
    expect(await make("node")).toMatchObject({ source: { kind: "host" }, warnings: [] });
  });

  it("refuses a configuration that no program can be started with", async () => {
    bench.images.publish("hostile:1", "x", { env: { "A=B": "1" } });
    bench.images.publish("hostile:2", "x", { user: "app:x:y" });
    bench.images.publish("hostile:3", "x", { workdir: `/${"a".repeat(5000)}` });
    for (const image of ["hostile:1", "hostile:2", "hostile:3"]) {
      await expect(make("hostile", { image })).rejects.toMatchObject({ code: "build_failed", message: expect.stringContaining(image) });
    }
  });

  it("takes the registry's image of a short name only where the operator has configured one", async () => {
    bench.images.publish("base:latest", "files of base");
    const before = bench.images.resolves;
    expect(await make("one", { image: "base" })).toMatchObject({ source: { kind: "host" } });
    expect(bench.images.resolves).toBe(before);
    bench.images.hasOwnRegistry = true;
    expect(await make("two", { image: "base" })).toMatchObject({ source: { kind: "image", reference: "docker.io/library/base:latest" } });
    expect(await make("three", { image: "node" })).toMatchObject({ source: { kind: "host" } });
    expect(await bench.engine.meaningOf("base")).toMatchObject({ means: "image" });
    expect(await bench.engine.meaningOf("two")).toMatchObject({ means: "template" });
    expect(await bench.engine.meaningOf("nosuch")).toMatchObject({ means: "nothing" });
  });
});

describe("what several owners make", () => {
  const by = (owner: string, organisation: string) => ({ owner: { owner, organisation }, image: "tool:1", steps: [run("ssh-keygen -A")] });

  it("of equal steps is made once in an organisation, and again in another one", async () => {
    await make("a", by("alice", "acme"));
    await make("b", by("bob", "acme"));
    expect(bench.seen.commands).toHaveLength(1);
    await make("e", by("eve", "other"));
    await make("k", { ...by("", ""), owner: null });
    expect(bench.seen.commands).toHaveLength(3);
  });

  it("under the reference of an image does not take its place as a base", async () => {
    await make("tool:1", by("alice", "acme"));
    expect(await make("mine", { image: "tool:1" })).toMatchObject({ source: { kind: "image", layers: 1 } });
  });
});

describe("the same definition", () => {
  it("is answered from its snapshot, and built again when the digest of its tag has moved and `pull` asks", async () => {
    const first = await make("t", { image: "tool:1" });
    const boots = bench.driver.boots;
    await make("t", { image: "tool:1" });
    expect(await make("t", { image: "tool:1" }, { pull: true })).toMatchObject({ createdAtMs: first.createdAtMs });
    expect(bench.driver.boots).toBe(boots);
    bench.images.publish("tool:1", "newer files");
    await make("t", { image: "tool:1" });
    expect(bench.driver.boots).toBe(boots);
    expect(await make("t", { image: "tool:1" }, { pull: true })).toMatchObject({ source: { digest: digestOf("manifest of newer files") } });
    expect(bench.driver.boots).toBe(boots + 1);
  });

  it("is made again, after a restart and for another agent, without a registry", async () => {
    await make("t", { image: "tool:1", steps: [run("make")] });
    await bench.engine.close({ sandboxes: "end" });
    await bench.reopen();
    bench.images.publish("tool:1", "newer files");
    const { pulls, resolves } = bench.images;
    const commands = bench.seen.commands.length;
    await bench.engine.create(sandbox("a", { template: toTemplateId("t") }));
    expect(bench.images).toMatchObject({ pulls, resolves });
    expect(bench.seen.commands).toHaveLength(commands);
    expect(bench.driver.booted.at(-1)?.root).toMatchObject({ layers: [{ id: digestOf("files of tool") }, {}] });
  });
});

describe("steps", () => {
  it("run in order, each upon what the one before has made, with what was said of them", async () => {
    bench.program = ({ argv }, say) => {
      say(`says ${argv?.at(-1)}\nand `);
      say("more");
      return 0;
    };
    const context = digestOf("a tar");
    await bench.engine.putContext(
      context,
      (async function* () {
        yield Buffer.from("a tar");
      })(),
    );
    const made = await make("t", {
      image: "tool:1",
      steps: [
        { kind: "env", name: "LEVEL", value: "3" },
        { kind: "user", user: "1000:1000" },
        { kind: "workdir", path: "app" },
        run("one"),
        { kind: "workdir", path: "/usr/bin" },
        { kind: "copy", source: "src", dest: "lib/", context },
        run("two"),
      ],
    });
    expect(made.source).toMatchObject({ kind: "build", reference: "docker.io/library/tool:1", layers: 5 });
    const [, , second] = bench.driver.booted.slice(-3);
    expect(second?.root).toMatchObject({ layers: [{}, {}, {}, { id: digestOf(`/usr/bin/lib/ ${context}`) }, {}] });
    expect(bench.seen.adoptions.at(-3)).toMatchObject({ env: { PATH: "/bin", LEVEL: "3" }, user: "1000:1000", cwd: "/srv/app" });
    expect(bench.seen.adoptions.at(-2)).toMatchObject({ cwd: "/usr/bin" });
    expect(bench.seen.commands.slice(-2)).toEqual(["/bin/sh -c one", "/bin/sh -c two"]);
    const events = await eventsOf("t");
    const logs = events.flatMap((event) => (event.kind === "log" ? [[event.step, event.text]] : []));
    expect(logs).toEqual([
      [3, "says one\n"],
      [3, "and more"],
      [6, "says two\n"],
      [6, "and more"],
    ]);
    expect(kinds(events).filter((kind) => kind !== "log")).toEqual([
      "resolve",
      "pull",
      ...[0, 1, 2, 3, 4, 5, 6].flatMap((index) => [`step ${index} running`, `step ${index} done`]),
      "boot",
      "warm",
      "warm",
      "save",
      "done",
    ]);
  });

  it("that are stored are not run again: not by another template, not after a restart, and only the changed one and what follows it are", async () => {
    await make("t", { image: "tool:1", steps: [run("one"), run("two")] });
    await make("u", { image: "tool:1", steps: [run("one"), run("two")] });
    await bench.engine.close({ sandboxes: "end" });
    await bench.reopen();
    await make("v", { image: "tool:1", steps: [run("one"), run("two"), run("three")] });
    expect(kinds(await eventsOf("v"))).toEqual(expect.arrayContaining(["step 0 cached", "step 1 cached", "step 2 done"]));
    await make("t", { image: "tool:1", steps: [run("one"), { kind: "env", name: "A", value: "" }, run("two")] });
    expect(bench.seen.commands.map((command) => command.split(" ").at(-1))).toEqual(["one", "two", "three", "two"]);
    expect(bench.engine.counts().steps).toEqual({ run: 2, cached: 3 });
    await make("u", { image: "tool:1", steps: [run("one"), run("two")] }, { noCache: true });
    expect(bench.seen.commands.slice(4)).toEqual(["/bin/sh -c one", "/bin/sh -c two"]);
  });

  it("are run again when their layer was collected", async () => {
    await make("t", { image: "tool:1", steps: [run("one")] });
    await bench.engine.deleteTemplate(toTemplateId("t"));
    expect(await bench.engine.prune({ olderThanMs: 0 })).toMatchObject({ removedBytes: expect.any(Number) });
    await make("t", { image: "tool:1", steps: [run("one")] });
    expect(bench.seen.commands).toHaveLength(2);
  });

  it("that fail are named, with the end of what they printed, and nothing after them is run; the ones before are kept", async () => {
    bench.program = ({ argv }, say) => {
      if (argv?.at(-1) !== "two") return 0;
      say(`${"x".repeat(10_000)}\nno such package\n`);
      return 100;
    };
    const steps = [run("one"), run("two"), run("three")];
    await expect(make("t", { image: "tool:1", steps })).rejects.toMatchObject({
      code: "build_failed",
      detail: {
        cause: expect.stringMatching(/^step 1 \(run two\): it ended with exit code 100; [\s\S]*no such package$/),
        context: { step: 1, step_kind: "run" },
        remediation: expect.stringContaining("Change that step"),
      },
    });
    expect(bench.engine.listTemplates().map(({ id }) => id)).toEqual(["python"]);
    const events = await eventsOf("t");
    expect(kinds(events).slice(-2)).toEqual(["step 1 failed", "failed"]);
    expect(events.at(-1)).toMatchObject({ code: "build_failed", cause: expect.stringContaining("no such package") });
    bench.program = () => 0;
    await make("t", { image: "tool:1", steps });
    expect(bench.seen.commands.map((command) => command.split(" ").at(-1))).toEqual(["one", "two", "two", "three"]);
  });

  it("that die of memory say how much they had, and how to have more", async () => {
    bench.program = async (_start, _say, signal) => {
      const machine = [...bench.driver.machines.values()].at(-1) as unknown as { end(reason: string): Promise<void> };
      await machine.end("oom");
      return signal.aborted ? 0 : 1;
    };
    const building = make("t", { image: "tool:1", steps: [run("eat")] });
    await expect(building).rejects.toMatchObject({ code: "build_failed", detail: { cause: expect.stringContaining("its machine ended") } });
  });

  it("have more memory than the template, as far as there is some", async () => {
    await make("t", { image: "tool:1", steps: [run("one")] });
    expect(bench.driver.booted.at(-2)).toMatchObject({ resources: { memSizeMiB: 1024 }, scratch: "disk" });
    expect(bench.driver.booted.at(-1)?.resources.memSizeMiB).toBe(512);
    bench.availableBytes = 800 * 1024 * 1024;
    await make("u", { image: "tool:1", steps: [run("two")] });
    expect(bench.driver.booted.at(-2)?.resources.memSizeMiB).toBeLessThan(700);
  });

  it("are refused before anything is done: without an image, without their files, or when they are not well-formed", async () => {
    const boots = bench.driver.boots;
    await expect(make("base", { image: "base", steps: [run("one")] })).rejects.toMatchObject({ code: "invalid_input" });
    const context = digestOf("nobody has sent it");
    const copy: BuildStep = { kind: "copy", source: ".", dest: "/", context };
    await expect(make("t", { image: "tool:1", steps: [run("one"), copy] })).rejects.toMatchObject({
      code: "invalid_input",
      message: expect.stringMatching(/build_steps\[1\].*not here/),
    });
    const wrong: BuildStep[] = [
      run(""),
      run("a\0b"),
      { kind: "env", name: "A=B", value: "" },
      { kind: "user", user: "a b" },
      { ...copy, dest: "" },
    ];
    for (const step of wrong) {
      await expect(make("t", { image: "tool:1", steps: [step] })).rejects.toMatchObject({
        code: "invalid_input",
        message: expect.stringContaining("build_steps[0]"),
      });
    }
    expect(bench.driver.boots).toBe(boots);
    expect(bench.seen.commands).toEqual([]);
  });
});

describe("builds at the same time", () => {
  it("of one definition are one, and all who wait hear all of it", async () => {
    const door = gate();
    bench.program = async (_start, say, signal) => {
      say("hello\n");
      return door.pass(signal);
    };
    const heard: BuildEvent[][] = [[], []];
    const first = make("t", { image: "tool:1", steps: [run("one")] }, { onEvent: (event) => heard[0]?.push(event) });
    await door.reached;
    const second = make("t", { image: "tool:1", steps: [run("one")] }, { onEvent: (event) => heard[1]?.push(event) });
    expect(bench.engine.listTemplates()).toContainEqual(expect.objectContaining({ id: "t", ready: false }));
    door.open();
    await Promise.all([first, second]);
    expect(bench.seen.commands).toHaveLength(1);
    expect(heard[1]).toEqual(heard[0]);
    expect(heard[0]).toEqual(await eventsOf("t"));
  });

  it("that share a step run it once, and both hear it", async () => {
    const door = gate();
    bench.program = async (_start, say, signal) => {
      say("hello\n");
      return door.pass(signal);
    };
    const first = make("t", { image: "tool:1", steps: [run("one")] });
    await door.reached;
    const second = make("u", { image: "tool:1", steps: [run("one")] });
    const logged = (async () => {
      for await (const event of bench.engine.buildEvents(toTemplateId("u"), { follow: true })) if (event.kind === "log") return event.text;
      return undefined;
    })();
    expect(await logged).toBe("hello\n");
    door.open();
    await Promise.all([first, second]);
    expect(bench.seen.commands).toHaveLength(1);
  });

  it("of two definitions come one after the other, and the later one stays", async () => {
    const door = gate();
    bench.program = (_start, _say, signal) => door.pass(signal);
    const first = make("t", { image: "tool:1", steps: [run("one")] });
    await door.reached;
    const second = make("t", { image: "tool:1", steps: [run("two")] });
    door.open();
    await Promise.all([first, second]);
    expect(bench.engine.listTemplates().find(({ id }) => id === "t")?.steps).toEqual([run("two")]);
  });
});

describe("a build that nobody waits for any more", () => {
  it("ends, and leaves nothing but its events", async () => {
    const door = gate();
    bench.program = (_start, _say, signal) => door.pass(signal);
    const caller = new AbortController();
    const building = make("t", { image: "tool:1", steps: [run("one")] }, { signal: caller.signal });
    await door.reached;
    caller.abort();
    await expect(building).rejects.toMatchObject({ code: "canceled" });
    expect((await eventsOf("t")).at(-1)).toMatchObject({ kind: "failed", code: "canceled" });
    expect(bench.driver.machines.size).toBe(0);
    expect(bench.engine.counts().builds.canceled).toBe(1);
    bench.program = () => 0;
    await expect(make("t", { image: "tool:1", steps: [run("one")] })).resolves.toMatchObject({ ready: true });
  });

  it("goes on while another waits", async () => {
    const door = gate();
    bench.program = (_start, _say, signal) => door.pass(signal);
    const caller = new AbortController();
    const leaving = make("t", { image: "tool:1", steps: [run("one")] }, { signal: caller.signal });
    await door.reached;
    const staying = make("t", { image: "tool:1", steps: [run("one")] });
    caller.abort();
    await expect(leaving).rejects.toMatchObject({ code: "canceled" });
    door.open();
    await expect(staying).resolves.toMatchObject({ ready: true });
    expect(bench.seen.commands).toHaveLength(1);
  });

  it("ends with the server, and is told as failed", async () => {
    const door = gate();
    bench.program = (_start, _say, signal) => door.pass(signal);
    const building = make("t", { image: "tool:1", steps: [run("one")] });
    const failed = expect(building).rejects.toMatchObject({ code: "unavailable" });
    await door.reached;
    await bench.engine.close({ sandboxes: "end" });
    await failed;
    await bench.reopen();
    expect((await eventsOf("t")).at(-1)).toMatchObject({ kind: "failed", code: "unavailable" });
  });
});

describe("events of builds", () => {
  it("of a server that died in the middle end with its death", async () => {
    await make("t", { image: "tool:1" });
    await bench.engine.close({ sandboxes: "end" });
    const folder = path.join(bench.dataDir, "builds");
    const file = path.join(folder, `${digestOf("t").slice("sha256:".length).slice(0, 32)}.ndjson`);
    await truncate(file, (await readFile(file)).byteLength - 10);
    await bench.reopen();
    const events = await eventsOf("t");
    expect(events[0]).toMatchObject({ kind: "phase", phase: "resolve", atMs: expect.any(Number) });
    expect(events.at(-1)).toMatchObject({ kind: "failed", message: expect.stringContaining("server ended") });
  });

  it("are not found for a name that was never built", async () => {
    await expect(eventsOf("never")).rejects.toMatchObject({ code: "not_found" });
  });
});

describe("layers", () => {
  const [a] = ids("a");

  it("are kept while the image that they are of is still being pulled, and not after a build that failed", async () => {
    const image = bench.images.publish("pruned:1", "pruned meanwhile");
    const { id } = image.layers[0]!;
    bench.images.onLayer = async () => {
      await bench.engine.prune({ olderThanMs: 0 });
    };
    await make("t", { image: "pruned:1" });
    expect(bench.layers.has(id)).toBe(true);
    await bench.engine.deleteTemplate(toTemplateId("t"));
    await bench.engine.prune({ olderThanMs: 0 });
    bench.images.onLayer = () => Promise.reject(new Error("cut off"));
    await expect(make("t", { image: "pruned:1" })).rejects.toMatchObject({ code: "build_failed" });
    await bench.engine.prune({ olderThanMs: 0 });
    expect(bench.layers.has(id)).toBe(false);
  });

  it("are kept under a template, and under a paused sandbox and a fork of one that was deleted", async () => {
    const { id } = { id: toTemplateId("t") };
    await make("t", { image: "tool:1", steps: [run("one")] });
    const made = bench.driver.booted.at(-1)?.root;
    const layers = made?.kind === "layers" ? made.layers.map((layer) => layer.id) : [];
    expect(layers).toHaveLength(2);
    const areThere = () => layers.map((layer) => bench.layers.has(layer));
    await bench.engine.prune({ olderThanMs: 0 });
    expect(areThere()).toEqual([true, true]);

    await bench.engine.create(sandbox("a", { template: id }));
    if (a) await bench.engine.pause(a);
    await bench.engine.deleteTemplate(id);
    await bench.engine.prune({ olderThanMs: 0 });
    expect(areThere()).toEqual([true, true]);
    await bench.engine.close({ sandboxes: "keep" });
    await bench.reopen();
    await bench.engine.prune({ olderThanMs: 0 });
    expect(areThere()).toEqual([true, true]);

    if (a) await bench.engine.fork({ source: a, ids: [toSandboxId("b")], inheritSecrets: false, env: {} });
    if (a) await bench.engine.terminate(a);
    await bench.engine.prune({ olderThanMs: 0 });
    expect(areThere()).toEqual([true, true]);
    await bench.engine.terminate(toSandboxId("b"));
    await bench.engine.prune({ olderThanMs: 0 });
    expect(areThere()).toEqual([false, false]);
  });

  it("that nothing needs go by themselves when they and the caches are more than they may be", async () => {
    await bench.engine.close({ sandboxes: "end" });
    bench.cacheBytesMax = 10;
    await bench.reopen();
    await make("t", { image: "tool:1" });
    expect(bench.layers.has(digestOf("files of tool"))).toBe(true);
    await bench.engine.deleteTemplate(toTemplateId("t"));
    await expect.poll(() => bench.layers.has(digestOf("files of tool"))).toBe(false);
  });

  it("are counted once, and told apart by who has them", async () => {
    await make("t", { image: "tool:1", steps: [run("one")] });
    await make("u", { image: "tool:1" });
    const usage = await bench.engine.diskUsage();
    const own = "/bin/sh -c one".length;
    expect(usage).toMatchObject({ layers: { count: 2, bytes: 13 + own, unusedBytes: 0 }, cacheBytesMax: 20 * 1024 ** 3 });
    expect(usage.templates.find(({ id }) => id === "t")).toMatchObject({ rootBytes: 13 + own, ownBytes: own });
    expect(usage.templates.find(({ id }) => id === "u")).toMatchObject({ rootBytes: 13, ownBytes: 0 });
  });
});

describe("a template that is made of another one", () => {
  it("has its layers and configuration, and builds upon them", async () => {
    await make("t", { image: "tool:1", steps: [run("one"), { kind: "env", name: "A", value: "1" }] });
    const made = await make("u", { image: "t", steps: [run("two")] });
    expect(made.source).toMatchObject({ kind: "build", layers: 3 });
    expect(bench.seen.adoptions.at(-1)).toMatchObject({ env: { PATH: "/bin", A: "1" }, user: "app" });
  });

  it("can be pushed with what it starts, and one of the host's files cannot", async () => {
    const ready = { kind: "port", port: 80, timeoutSeconds: 5 } as const;
    await make("t", { image: "tool:1", steps: [run("one")] });
    await bench.engine.pushTemplate(toTemplateId("t"), "registry.test/team/t:1");
    expect(bench.images.pushed[0]).toMatchObject({
      reference: "registry.test/team/t:1",
      image: {
        layers: [{ id: digestOf("files of tool") }, { origin: null }],
        config: { workdir: "/srv", entrypoint: ["serve"] },
        history: ["run one"],
      },
    });
    await expect(bench.engine.pushTemplate(toTemplateId("python"), "registry.test/team/t:1")).rejects.toMatchObject({
      code: "invalid_input",
    });
    await expect(bench.engine.pushTemplate(toTemplateId("t"), "nowhere")).rejects.toMatchObject({ code: "invalid_input" });
    expect(ready.kind).toBe("port");
  });
});
