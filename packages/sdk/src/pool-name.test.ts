import { expect, it } from "vitest";
import { defaultPoolName } from "./pool-name.ts";

it.each([
  ["python", "mitos-default-python"],
  ["python:3.12-slim", "mitos-default-python-3.12-slim"],
  ["Python", "mitos-default-python"],
  ["python.", "mitos-default-python"],
  ["python-", "mitos-default-python"],
  ["python:3.11", "mitos-default-python-3.11"],
  ["python-3.11", "mitos-default-python-3.11"],
  ["a_b@@c", "mitos-default-a-b-c"],
  ["ghcr.io/mitos-run/agent-python-with-a-very-long-tag:3.12", "mitos-default-ghcr.io-mitos-run-agent-python-with-a-ve"],
])("the default pool of the image %s is %s", (image, name) => {
  expect(defaultPoolName(image)).toBe(name);
});

it("a name of 40 characters that is cut at a separator does not end with it", () => {
  expect(defaultPoolName(`${"a".repeat(39)}/b`)).toBe(`mitos-default-${"a".repeat(39)}`);
});
