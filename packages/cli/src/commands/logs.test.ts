import type { ProcessEvent } from "@mitos/sdk";
import { expect, it } from "vitest";
import { lastLines } from "./logs.ts";

const event = (type: "stdout" | "stderr", text: string): ProcessEvent => ({ type, offset: 0, data: Buffer.from(text) });

it.each<[string, number, ProcessEvent[], string]>([
  ["the last of several", 1, [event("stdout", "a\nb\nc\n")], "c\n"],
  ["a last one without an end", 1, [event("stdout", "a\nb")], "b"],
  ["more than there are", 9, [event("stdout", "a\nb\n")], "a\nb\n"],
  ["lines cut between two events", 2, [event("stdout", "a\nb"), event("stdout", "b\nc\n")], "bb\nc\n"],
  ["lines of both streams", 2, [event("stdout", "a\n"), event("stderr", "b\n"), event("stdout", "c\n")], "b\nc\n"],
  ["empty lines", 2, [event("stdout", "a\n\n\n")], "\n\n"],
  ["nothing", 2, [], ""],
])("--tail keeps %s", (_title, count, events, wanted) => {
  const text = lastLines(events, count).map((each) => ("data" in each ? Buffer.from(each.data).toString() : ""));
  expect(text.join("")).toBe(wanted);
});
