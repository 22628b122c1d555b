import { expect, it } from "vitest";
import { toProcessInfo } from "./commands.ts";
import { parseEntries } from "./entries.ts";
import { toEvents } from "./watch.ts";

it("records of find are read whatever is in a name", () => {
  const text = ["d", "60", "755", "root", "root", "1795663975.5", "", "/w/a\nb", "l", "3", "777", "me", "us", "0", "a\tb", "/w/l", ""].join(
    "\0",
  );
  expect(parseEntries(text)).toEqual([
    {
      name: "a\nb",
      type: "dir",
      path: "/w/a\nb",
      size: 60,
      mode: 0o755,
      permissions: "rwxr-xr-x",
      owner: "root",
      group: "root",
      modifiedTime: new Date(1_795_663_975_500),
    },
    {
      name: "l",
      type: "symlink",
      path: "/w/l",
      size: 3,
      mode: 0o777,
      permissions: "rwxrwxrwx",
      owner: "me",
      group: "us",
      modifiedTime: new Date(0),
      symlinkTarget: "a\tb",
    },
  ]);
  expect(parseEntries("")).toEqual([]);
});

it.each([
  [{ kind: "create", path: "/w/a" }, [{ type: "create", name: "a" }]],
  [{ kind: "modify", path: "/w/d/a" }, [{ type: "write", name: "d/a" }]],
  [{ kind: "delete", path: "/w/a" }, [{ type: "remove", name: "a" }]],
  [
    { kind: "rename", path: "/w/a", newPath: "/w/b" },
    [
      { type: "rename", name: "a" },
      { type: "create", name: "b" },
    ],
  ],
  [{ kind: "rename", path: "/w/a" }, [{ type: "rename", name: "a" }]],
] as const)("%j is told as %j", (event, told) => {
  expect(toEvents(event, "/w")).toEqual(told);
});

it.each([
  ["/bin/bash -l -c echo 'a b'", { cmd: "/bin/bash", args: ["-l", "-c", "echo 'a b'"] }],
  ["/bin/bash -i -l", { cmd: "/bin/bash -i -l", args: [] }],
  ["sleep 1", { cmd: "sleep 1", args: [] }],
])("the command line %j is %j", (command, parts) => {
  expect(toProcessInfo({ pid: 7, command })).toEqual({ pid: 7, envs: {}, ...parts });
});
