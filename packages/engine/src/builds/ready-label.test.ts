import { describe, expect, it } from "vitest";
import type { ReadyCheck } from "../actions.ts";
import { emptyConfig } from "./config.ts";
import { readyByLabel, withReadyLabel } from "./ready-label.ts";

const checks: readonly ReadyCheck[] = [
  { kind: "http", port: 8080, path: "/healthz", expect: 204, timeoutSeconds: 5 },
  { kind: "port", port: 5432, timeoutSeconds: 5 },
  { kind: "command", command: "pg_isready", timeoutSeconds: 5 },
];

describe("the ready check of a pushed template", () => {
  it.each(checks)("comes back from the image: $kind", (ready) => {
    expect(readyByLabel(withReadyLabel(emptyConfig, ready))).toEqual(ready);
  });

  it("is none where the template has none, whatever its base had", () => {
    const base = withReadyLabel({ ...emptyConfig, labels: { other: "1" } }, checks[0]);
    expect(withReadyLabel(base, undefined).labels).toEqual({ other: "1" });
  });

  it.each([
    "not json",
    "null",
    "7",
    "{}",
    '{"kind":"exec","timeoutSeconds":1}',
    '{"kind":"port","port":0,"timeoutSeconds":1}',
    '{"kind":"port","port":80,"timeoutSeconds":1e9}',
    '{"kind":"http","port":80,"path":"/ HTTP/1.1\\r\\nX: y","expect":200,"timeoutSeconds":1}',
    '{"kind":"http","port":80,"path":{"length":1},"expect":200,"timeoutSeconds":1}',
    '{"kind":"http","port":80,"path":"/","expect":"200","timeoutSeconds":1}',
    '{"kind":"command","command":["a"],"timeoutSeconds":1}',
  ])("is none when an image says %s", (label) => {
    expect(readyByLabel({ ...emptyConfig, labels: { "run.mitos.ready": label } })).toBeUndefined();
  });
});
