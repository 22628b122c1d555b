import { expect, it } from "vitest";
import { hostNameOf } from "./host-name.ts";

it.each([
  ["sandbox-1a2b3c4d", /^sandbox-1a2b3c4d$/],
  ["abcDEF_09", /^abcDEF-09$/],
  ["registry.example/x/y:1", /^template-[0-9a-f]{16}$/],
])("names a host for %s", (id, name) => {
  expect(hostNameOf(id)).toMatch(name);
});
