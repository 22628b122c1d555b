import { randomBytes } from "node:crypto";
import { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { until } from "../support/until.ts";
import { Dice, roundsOr } from "./dice.ts";
import { accountOf } from "./host-account.ts";
import { ServedDirectory } from "./served-directory.ts";

/** What must be found again in a sandbox, whatever happened to the server. */
interface Known {
  readonly id: string;
  readonly token: string;
  /** Prints a line five times a second, for ever. */
  readonly pid: number;
  readonly deadlineUnix: number;
  /** The states in which it may be: more than one while nobody was told what came of an operation. */
  states: ReadonlySet<"running" | "paused">;
}

/** Something that a client asks for, and what may be there when the server dies in the middle of it. */
interface Operation {
  /** Resolves when the server has answered; rejects when the connection broke. */
  run(): Promise<void>;
  /** Called after the restart; `answered` is whether the client knows that it was done. */
  check(answered: boolean): Promise<void>;
}

const dice = new Dice();
const ttlSeconds = 3_000;

let directory: ServedDirectory;
const known = new Map<string, Known>();

beforeAll(async () => {
  directory = await ServedDirectory.open({ args: ["--pool-size", "3"] });
  for (const id of ["runner", "sleeper", "forker"]) await create(id);
  await handle("sleeper").pause();
  stateOf("sleeper").states = new Set(["paused"]);
});
afterAll(() => directory[Symbol.asyncDispose]());

function handle(id: string): Sandbox {
  return new Sandbox({ id, endpoint: directory.server.url });
}

function stateOf(id: string): Known {
  const found = known.get(id);
  if (!found) throw new Error(`no sandbox ${id} is known`);
  return found;
}

/** With a file, a variable, a process and a deadline. */
async function create(id: string): Promise<void> {
  const token = randomBytes(8).toString("hex");
  const sandbox = await Sandbox.create({ id, template: "python", timeoutSeconds: ttlSeconds, baseUrl: directory.server.url });
  await sandbox.files.write("/workspace/token", token);
  await sandbox.runCode(`token = "${token}"`);
  const pid = await sandbox.execBackground("n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done").started;
  const { deadlineUnix } = await sandbox.info();
  known.set(id, { id, token, pid, deadlineUnix: deadlineUnix ?? 0, states: new Set(["running"]) });
}

/** Whatever is asked for here exists already when the server dies, and must be whole afterwards. */
async function expectWhole({ id, token, pid, deadlineUnix, states }: Known): Promise<void> {
  const sandbox = handle(id);
  const info = await sandbox.info();
  expect([...states], `state of ${id}`).toContain(info.state);
  expect(info.deadlineUnix, `deadline of ${id}`).toBe(deadlineUnix);
  if (info.state === "paused") await sandbox.resume();
  expect(await sandbox.files.read("/workspace/token"), `file of ${id}`).toBe(token);
  expect((await sandbox.runCode("print(token)")).logs.stdout.join(""), `variable of ${id}`).toBe(`${token}\n`);
  const bytes = async () => (await sandbox.processes()).find((row) => row.pid === pid && row.state === "running")?.stdoutBytes ?? -1;
  const before = await bytes();
  expect(before, `process of ${id}`).toBeGreaterThan(0);
  await until(`the process of ${id} goes on`, async () => (await bytes()) > before);
  if (info.state === "paused") await sandbox.pause();
  stateOf(id).states = new Set([info.state as "running" | "paused"]);
}

/** Nothing on the host that no sandbox and no template accounts for. Asked before anything new is started. */
async function expectNothingLeftOver(): Promise<void> {
  const rows = await directory.api.listSandboxes();
  const running = rows.filter(({ state }) => state === "running").length;
  const paused = rows.filter(({ state }) => state === "paused").length;
  const templates = (await directory.api.listTemplates()).length;
  expect(rows.filter(({ state }) => state !== "running" && state !== "paused")).toEqual([]);
  // What a forgotten machine's processes and cgroup take to vanish is the kernel's affair.
  await until("only the machines of running sandboxes are there", () => accountOf(directory.dataDir).machines.length === running);
  const account = accountOf(directory.dataDir);
  expect(account.machineFolders).toEqual(account.machines);
  expect(account.cgroups).toEqual(process.getuid?.() === 0 ? account.machines : []);
  expect(account.machineNames).toHaveLength(running);
  expect(account.runscStates).toHaveLength(engineUnderTest === "gvisor" ? running : 0);
  const kinds = Object.groupBy(account.snapshots, (name) => name.split("-")[0]!);
  expect(kinds, JSON.stringify(account.snapshots)).not.toHaveProperty("fork");
  expect(kinds.pause ?? []).toHaveLength(paused);
  expect(kinds.template ?? []).toHaveLength(templates);
  expect(account.partial).toEqual([]);
}

/** What a sandbox that nobody was told of may be: absent without a trace, or whole. */
async function isThere(id: string): Promise<boolean> {
  const row = (await directory.api.listSandboxes()).find((found) => found.id === id);
  if (!row) return false;
  expect(row.state).toBe("running");
  expect((await handle(id).exec("echo alive")).stdout).toBe("alive\n");
  return true;
}

const operations: Record<string, () => Operation> = {
  create() {
    const id = `new-${randomBytes(4).toString("hex")}`;
    const create = () => directory.api.fork("python", id, { idempotencyKey: id });
    return {
      run: async () => void (await create()),
      async check(answered) {
        const there = await isThere(id);
        if (answered) expect(there, "a sandbox whose creation was answered").toBe(true);
        // As a client does that was not answered: it has its sandbox then, whether the first attempt had made it or not.
        expect((await create()).id).toBe(id);
        expect(await isThere(id)).toBe(true);
        await handle(id).terminate();
      },
    };
  },
  fork() {
    const name = `kid-${randomBytes(4).toString("hex")}`;
    const ids = [0, 1].map((index) => `${name}-${index}`);
    return {
      run: async () => void (await handle("forker").fork(2, { id: name })),
      async check(answered) {
        const there = await Promise.all(ids.map(isThere));
        if (answered) expect(there).toEqual([true, true]);
        expect(there[0], "all children of a fork or none").toBe(there[1]);
        const { token } = stateOf("forker");
        for (const id of ids.filter((_, index) => there[index])) {
          expect(await handle(id).files.read("/workspace/token")).toBe(token);
          expect((await handle(id).runCode("print(token)")).logs.stdout.join("")).toBe(`${token}\n`);
          await handle(id).terminate();
        }
      },
    };
  },
  pause() {
    stateOf("runner").states = new Set(["running", "paused"]);
    return {
      run: () => handle("runner").pause(),
      async check(answered) {
        const { state } = await handle("runner").info();
        if (answered) expect(state).toBe("paused");
        if (state === "paused") await handle("runner").resume();
        stateOf("runner").states = new Set(["running"]);
      },
    };
  },
  resume() {
    stateOf("sleeper").states = new Set(["running", "paused"]);
    return {
      run: () => handle("sleeper").resume(),
      async check(answered) {
        const { state } = await handle("sleeper").info();
        if (answered) expect(state).toBe("running");
        if (state === "running") await handle("sleeper").pause();
        stateOf("sleeper").states = new Set(["paused"]);
      },
    };
  },
  template() {
    const id = `t-${randomBytes(4).toString("hex")}`;
    return {
      run: async () => void (await directory.api.createTemplate(id)),
      async check(answered) {
        const there = (await directory.api.listTemplates()).some((template) => template.id === id);
        if (answered) expect(there).toBe(true);
        if (there) await fetch(`${directory.server.url}/v1/templates/${id}`, { method: "DELETE" });
      },
    };
  },
  upload() {
    const old = "old".repeat(100);
    const fresh = "new!".repeat(2_000_000);
    return {
      run: async () => {
        await handle("forker").files.write("/workspace/upload", old);
        await handle("forker").files.write("/workspace/upload", fresh);
      },
      async check(answered) {
        const text = await handle("forker")
          .files.read("/workspace/upload")
          .catch(() => "");
        // The first of the two may not have been reached.
        if (answered) expect(text).toHaveLength(fresh.length);
        else expect([0, old.length, fresh.length]).toContain(text.length);
      },
    };
  },
  terminate() {
    const id = `gone-${randomBytes(4).toString("hex")}`;
    let asked = false;
    return {
      run: async () => {
        await directory.api.fork("python", id);
        asked = true;
        await handle(id).terminate();
      },
      async check(answered) {
        const there = await isThere(id);
        if (answered) expect(there).toBe(false);
        if (!asked && !there) return;
        if (there) await handle(id).terminate();
      },
    };
  },
};

describe("kill -9 of the server", () => {
  /** How long each operation takes here and now, so that the kill falls into it. */
  const durationsMs = new Map([
    ["template", 1_500],
    ["fork", 400],
  ]);
  const names = Object.keys(operations);

  it("in the middle of anything loses no sandbox and leaves nothing half-made", { timeout: 3_600_000 }, async () => {
    const rounds = roundsOr(names.length);
    let answers = 0;
    let order: string[] = [];
    for (let round = 0; round < rounds; round += 1) {
      if (order.length === 0) order = dice.shuffled(names);
      const chosen = [order.pop()!];
      // Now and then two at once.
      if (dice.next() < 0.3) chosen.push(dice.pick(names.filter((name) => name !== chosen[0])));
      const made = chosen.map((name) => ({ name, operation: operations[name]!(), answered: false }));
      const began = performance.now();
      const running = made.map(async (one) => {
        await one.operation.run().then(
          () => {
            one.answered = true;
            durationsMs.set(one.name, performance.now() - began);
          },
          () => undefined,
        );
      });
      const delayMs = dice.next() * 1.15 * (durationsMs.get(chosen[0]!) ?? 250);
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      await directory.server.kill();
      await Promise.all(running);
      answers += made.filter(({ answered }) => answered).length;
      const what = `round ${round}: ${made.map(({ name, answered }) => `${name}${answered ? " (answered)" : ""}`).join(" and ")}, killed after ${delayMs.toFixed(0)} ms`;
      console.log(what);
      try {
        await directory.restart();
        await expectNothingLeftOver();
        for (const { operation, answered } of made) await operation.check(answered);
        await Promise.all([...known.values()].map(expectWhole));
      } catch (error) {
        throw new Error(`MITOS_SEED=${dice.seed}, ${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
      }
    }
    console.log(`${rounds} rounds, ${answers} operations were answered before the kill`);
  });
});
