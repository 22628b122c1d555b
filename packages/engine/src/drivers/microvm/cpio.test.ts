import { expect, it } from "vitest";
import { type CpioEntry, cpioOf } from "./cpio.ts";

const entries: CpioEntry[] = [
  { kind: "folder", name: "dev", mode: 0o755 },
  { kind: "character device", name: "dev/console", mode: 0o600, major: 5, minor: 1 },
  { kind: "file", name: "a", mode: 0o4755, content: Buffer.from("12345") },
  { kind: "link", name: "etc/mtab", target: "/proc/self/mounts" },
];

it("writes what the kernel's documentation of the format says", () => {
  // Of each header: inode, mode, uid, gid, links, mtime, length, device of the holder (2), device (2), length of the name, check.
  const words = (...numbers: number[]) => numbers.map((number) => number.toString(16).padStart(8, "0")).join("");
  const wanted = [
    `070701${words(1, 0o040755, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 0)}dev\0\0\0`,
    `070701${words(2, 0o020600, 0, 0, 1, 0, 0, 0, 0, 5, 1, 12, 0)}dev/console\0\0\0`,
    `070701${words(3, 0o104755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 2, 0)}a\0`,
    "12345\0\0\0",
    `070701${words(4, 0o120777, 0, 0, 1, 0, 17, 0, 0, 0, 0, 9, 0)}etc/mtab\0\0`,
    "/proc/self/mounts\0\0\0",
    `070701${words(0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0)}TRAILER!!!\0\0\0\0`,
  ];
  expect(Buffer.from(cpioOf(entries)).toString("latin1")).toBe(wanted.join(""));
});

it("lets every header and every content begin at a multiple of four, whatever the lengths", () => {
  const names = ["a", "ab", "abc", "abcd", "abcde"];
  const archive = Buffer.from(
    cpioOf(names.flatMap((name, bytes) => [{ kind: "file" as const, name, mode: 0o644, content: Buffer.alloc(bytes, "x") }])),
  );
  const starts = [...archive.toString("latin1").matchAll(/070701/g)].map(({ index }) => index);
  expect(starts).toHaveLength(names.length + 1);
  expect(starts.filter((at) => at % 4 !== 0)).toEqual([]);
});
