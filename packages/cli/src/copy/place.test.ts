import { expect, it } from "vitest";
import { parsePlace } from "./place.ts";

it.each([
  ["-", { kind: "stream" }],
  ["notes.txt", { kind: "local", path: "notes.txt" }],
  ["./odd:name", { kind: "local", path: "./odd:name" }],
  ["/tmp/odd:name", { kind: "local", path: "/tmp/odd:name" }],
  ["folder/", { kind: "local", path: "folder/" }],
  ["sb-1:/etc/hosts", { kind: "sandbox", sandbox: "sb-1", path: "/etc/hosts" }],
  ["sb-1:notes.txt", { kind: "sandbox", sandbox: "sb-1", path: "/workspace/notes.txt" }],
  ["sb-1:", { kind: "sandbox", sandbox: "sb-1", path: "/workspace/" }],
  ["sb-1:folder/", { kind: "sandbox", sandbox: "sb-1", path: "/workspace/folder/" }],
  ["sb-1:../etc/./x", { kind: "sandbox", sandbox: "sb-1", path: "/etc/x" }],
  ["sb-1:/", { kind: "sandbox", sandbox: "sb-1", path: "/" }],
  ["sb-1:a:b", { kind: "sandbox", sandbox: "sb-1", path: "/workspace/a:b" }],
])("%s is read as %j", (text, place) => {
  expect(parsePlace(text)).toEqual(place);
});
