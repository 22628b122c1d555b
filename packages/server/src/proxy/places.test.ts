import { limits, type SandboxId } from "@mitos/protocol";
import { expect, it } from "vitest";
import { Places } from "./places.ts";

const a = "a" as SandboxId;
const b = "b" as SandboxId;
const staying = new AbortController().signal;
const full = { code: "too_many_streams" };

it("places are counted for each sandbox, and one more than there are is refused", async () => {
  const places = new Places({ what: "things", perSandboxMax: 1 });
  const held = await places.take(a, staying);
  await expect(places.take(a, staying)).rejects.toMatchObject(full);
  await places.take(b, staying);
  held[Symbol.dispose]();
  held[Symbol.dispose]();
  await places.take(a, staying);
  await expect(places.take(a, staying)).rejects.toMatchObject(full);
});

it("who waits is served in turn, and no more wait than may", async () => {
  const places = new Places({ what: "things", perSandboxMax: 1, waitingMax: 2, waitMsMax: 60_000 });
  const held = await places.take(a, staying);
  const served: number[] = [];
  const waiting = [1, 2].map(async (number) => {
    using _place = await places.take(a, staying);
    served.push(number);
  });
  await expect(places.take(a, staying)).rejects.toMatchObject(full);
  held[Symbol.dispose]();
  await Promise.all(waiting);
  expect(served).toEqual([1, 2]);
  await places.take(a, staying);
});

it("who leaves while waiting takes no place, and who waits too long is refused", async () => {
  const places = new Places({ what: "things", perSandboxMax: 1, waitingMax: 1, waitMsMax: 20 });
  const held = await places.take(a, staying);
  const leaving = new AbortController();
  const left = expect(places.take(a, leaving.signal)).rejects.toThrow("gone");
  leaving.abort(new Error("gone"));
  await left;
  await expect(places.take(a, staying)).rejects.toMatchObject(full);
  held[Symbol.dispose]();
  await places.take(a, staying);
});

it("all ways into a sandbox together leave channels of its link to others", () => {
  const { exposedRequestsPerSandboxMax, previewRequestsPerSandboxMax, upgradedSocketsPerSandboxMax, forwardedConnectionsPerSandboxMax } =
    limits;
  const channelsOfALink = 512;
  expect(
    exposedRequestsPerSandboxMax + previewRequestsPerSandboxMax + upgradedSocketsPerSandboxMax + forwardedConnectionsPerSandboxMax,
  ).toBeLessThan(channelsOfALink / 2);
});
