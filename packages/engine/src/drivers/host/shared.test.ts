import { expect, it } from "vitest";
import { Shared } from "./shared.ts";

it("makes a thing once however many ask at the same time, and looks again for who asks later", async () => {
  const shared = new Shared<number>();
  let opened = 0;
  const opening = Promise.withResolvers<void>();
  const open = async () => {
    await opening.promise;
    return ++opened;
  };
  const uses = [shared.use("a", open), shared.use("a", open), shared.use("a", open)];
  opening.resolve();
  expect((await Promise.all(uses)).map(({ value }) => value)).toEqual([1, 1, 1]);
  expect((await shared.use("a", open)).value).toBe(2);
});

it("holds a thing until everybody has given it back, each once", async () => {
  const shared = new Shared<string>();
  const inUse = async () => {
    let names: string[] = [];
    await shared.remove(async (used) => {
      names = [...used].sort();
    });
    return names;
  };
  const [first, second] = await Promise.all([shared.use("a", async () => "a"), shared.use("a", async () => "a")]);
  await shared.use("b", () => Promise.reject(new Error("it cannot be made"))).catch(() => {});
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  expect(await inUse()).toEqual(["a"]);
  second[Symbol.dispose]();
  expect(await inUse()).toEqual([]);
});

it("lets nobody have a thing while one is removed, and tells who wants it by then", async () => {
  const shared = new Shared<string>();
  const steps: string[] = [];
  const removing = Promise.withResolvers<void>();
  const removal = shared.remove(async () => {
    steps.push("removal begins");
    await removing.promise;
    steps.push("removal ends");
  });
  const use = shared.use("a", async () => {
    steps.push("opened");
    return "a";
  });
  const next = shared.remove(async (inUse) => void steps.push(`in use: ${[...inUse].join(" ")}`));
  removing.resolve();
  await Promise.all([removal, use, next]);
  expect(steps.filter((step) => step !== "opened")).toEqual(["removal begins", "removal ends", "in use: a"]);
  expect(steps.indexOf("opened")).toBeGreaterThan(steps.indexOf("removal ends"));
});

it("goes on after a removal that failed", async () => {
  const shared = new Shared<string>();
  await expect(shared.remove(() => Promise.reject(new Error("the disk")))).rejects.toThrow("the disk");
  expect((await shared.use("a", async () => "a")).value).toBe("a");
});
