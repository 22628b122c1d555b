import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { afterEach, expect, it } from "vitest";
import type { Keeper } from "./machine.ts";
import { isAliveNow, processGone, sendSignal } from "./processes.ts";
import { ReadyKeepers } from "./ready.ts";

const log = { debug() {}, info() {}, warn() {}, error() {} };

interface Shape {
  readonly memSizeMiB: number;
}

interface Container extends Keeper {
  readonly sentryPid: number;
}

const shape = (memSizeMiB: number): Shape => ({ memSizeMiB });

/** Containers whose sentry is a real process that only sleeps. */
function fakes() {
  const failing = { from: Number.POSITIVE_INFINITY };
  const living = new Map<string, { container: Container; closed: () => void; kill: () => void }>();
  let made = 0;
  const ready = new ReadyKeepers<Shape, Container>({
    log,
    key: ({ memSizeMiB }) => String(memSizeMiB),
    isAlive: ({ sentryPid }) => isAliveNow(sentryPid),
    rest: ({ sentryPid }) => sendSignal(sentryPid, "SIGSTOP"),
    wake: ({ sentryPid }) => sendSignal(sentryPid, "SIGCONT"),
    async create(wanted) {
      made += 1;
      if (made >= failing.from) throw new Error("no room");
      const child = spawn("sleep", ["1000"], { stdio: "ignore" });
      const { promise, resolve } = Promise.withResolvers<undefined>();
      const container = { id: `c${made}`, shape: wanted, sentryPid: child.pid!, control: { closed: promise } } as unknown as Container;
      living.set(container.id, { container, closed: () => resolve(undefined), kill: () => child.kill("SIGKILL") });
      return container;
    },
    async discard(container) {
      living.get(container.id)?.kill();
      living.delete(container.id);
    },
  });
  return { ready, living, failing };
}

const stateOf = (pid: number) => readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]![0];

const open: ReturnType<typeof fakes>[] = [];
afterEach(async () => {
  for (const { ready, living } of open.splice(0)) {
    await ready.close();
    for (const { kill } of living.values()) kill();
  }
});
function newFakes() {
  const made = fakes();
  open.push(made);
  return made;
}

it("gives nobody one that was killed while it waited, though nobody has told of it, and removes it", async () => {
  const { ready, living } = newFakes();
  ready.want(shape(1), 2);
  await ready.settled();
  const [dead, alive] = [...living.values()];
  dead!.kill();
  await processGone(dead!.container.sentryPid);
  expect(ready.take(shape(1))).toBe(alive!.container);
  expect(living.has(dead!.container.id)).toBe(false);
  expect(ready.take(shape(1))).toBeUndefined();
});

it("gives a container only to whom it fits, stopped until then and awake after", async () => {
  const { ready } = newFakes();
  ready.want(shape(256), 1);
  await ready.settled();
  expect(ready.take(shape(512))).toBeUndefined();
  const [waiting] = ready.ids();
  const container = ready.take(shape(256))!;
  expect(container.id).toBe(waiting);
  await expect.poll(() => stateOf(container.sentryPid)).toBe("S");
  expect(ready.take(shape(256))).toBeUndefined();
});

it("stops containers while they wait", async () => {
  const { ready, living } = newFakes();
  ready.want(shape(256), 2);
  await ready.settled();
  await expect.poll(() => [...living.values()].map(({ container }) => stateOf(container.sentryPid))).toEqual(["T", "T"]);
});

it("fills up again, and replaces a container that has ended", async () => {
  const { ready, living } = newFakes();
  ready.want(shape(256), 2);
  await ready.settled();
  ready.take(shape(256));
  living.get(ready.ids()[0]!)!.closed();
  await Promise.resolve();
  ready.refill();
  await ready.settled();
  expect(ready.ids()).toHaveLength(2);
});

it("lets what was just started have the processors first", async () => {
  const { ready, living } = newFakes();
  ready.want(shape(256), 1);
  await ready.settled();
  ready.take(shape(256));
  ready.refill();
  ready.refill();
  await new Promise(setImmediate);
  expect(living.size).toBe(1);
  await expect.poll(() => ready.ids()).toEqual(["c2"]);
});

it("keeps to its bounds, and gives up the shapes that were asked for longest ago", async () => {
  const { ready } = newFakes();
  for (let index = 0; index < 10; index += 1) {
    ready.want(shape(64 + index), 5);
    await ready.settled();
  }
  expect(ready.ids().length).toBeLessThanOrEqual(32);
  expect(ready.take(shape(64))).toBeUndefined();
  expect(ready.take(shape(70))).toBeDefined();
});

it("forgets also those of a shape of which no more could be made", async () => {
  const { ready, living, failing } = newFakes();
  failing.from = 2;
  ready.want(shape(256), 2);
  await ready.settled();
  expect(ready.ids()).toEqual(["c1"]);
  await ready.forget(() => true);
  expect([...ready.ids(), ...living.keys()]).toEqual([]);
});

it("does not try again by itself what could not be made", async () => {
  const { ready, failing } = newFakes();
  failing.from = 2;
  ready.want(shape(256), 3);
  await ready.settled();
  failing.from = Number.POSITIVE_INFINITY;
  ready.refill();
  await ready.settled();
  expect(ready.ids()).toEqual(["c1"]);
});

it("leaves nothing when it is closed", async () => {
  const { ready, living } = newFakes();
  ready.want(shape(256), 3);
  await ready.close();
  expect(living.size).toBe(0);
  ready.want(shape(256), 3);
  await ready.settled();
  expect(living.size).toBe(0);
});

it("makes the next ones for what the last one was taken for", async () => {
  const { ready, living } = newFakes();
  const shapeFor = (disk: string) => ({ memSizeMiB: 1, disk });
  ready.want(shapeFor("first"), 1);
  await ready.settled();
  ready.take(shapeFor("second"));
  ready.refill();
  await ready.settled();
  const [, next] = [...living.values()];
  expect(next?.container).toMatchObject({ shape: shapeFor("second") });
});
