import { lstatSync, readdirSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { onDebian } from "../support/base-image.ts";
import { engineUnderTest } from "../support/engine-under-test.ts";
import {
  type Compression,
  foreignArchitecture,
  imageOf,
  indexOf,
  type LayerBlob,
  layerOf,
  mediaTypes,
  ourArchitecture,
} from "../support/oci.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import type { TarEntry } from "../support/tar.ts";
import { ImageServer } from "./image-server.ts";

/** An image as people make them: a user of its own, files of several owners, things removed and replaced by later layers. */
const first: TarEntry[] = [
  { name: "etc/motd", content: "of the first layer" },
  { name: "opt/tool", type: "dir" },
  { name: "opt/tool/old", content: "replaced as a whole" },
  { name: "srv/app", type: "dir", uid: 1234, gid: 1234, mode: 0o750 },
  { name: "srv/app/notes", content: "first", uid: 1234, gid: 1234, mode: 0o640 },
  { name: "srv/app/same-notes", type: "hardlink", target: "srv/app/notes" },
  { name: "srv/shared", type: "dir", uid: 33, gid: 4321, mode: 0o2775 },
  { name: "srv/sticky", type: "dir", mode: 0o1777 },
  { name: "srv/link", type: "symlink", target: "app/notes", uid: 1234, gid: 1234 },
  { name: "srv/absolute", type: "symlink", target: "/srv/app" },
  { name: "usr/local/bin/as-root", content: "#!/bin/sh\nid -u\n", mode: 0o4755 },
  { name: "usr/local/bin/id-as-root", content: readFileSync("/usr/bin/id"), mode: 0o4755 },
  { name: "usr/local/bin/id-as-another", content: readFileSync("/usr/bin/id"), uid: 33, gid: 4321, mode: 0o6755 },
  { name: "srv/noted", content: "x", pax: { "SCHILY.xattr.user.note": "kept" } },
  { name: "srv/noted-again", type: "hardlink", target: "srv/noted" },
  { name: "srv/naïve – ☃", content: "a name of other letters" },
];
const second: TarEntry[] = [
  { name: "etc/.wh.motd" },
  { name: "opt/tool", type: "dir" },
  { name: "opt/tool/.wh..wh..opq" },
  { name: "opt/tool/new", content: "alone" },
  { name: "srv/absolute/through", content: "written through a link", uid: 1234, gid: 1234 },
  { name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/bash\napp:x:1234:1234::/srv/app:/bin/sh\n" },
  { name: "etc/group", content: "root:x:0:\nshadow:x:42:\napp:x:1234:\n" },
];
const run = { User: "app", WorkingDir: "/srv/app", Env: ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello from the image", "EMPTY="] };
const rich = () => onDebian("python", [layerOf(first), layerOf(second, "zstd")], run);

let registry: Registry;
let server: ImageServer;
let reference: string;

beforeAll(async () => {
  registry = await startRegistry();
  server = await ImageServer.start();
  reference = await registry.push(await rich(), "team/rich:1");
});

afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
});

async function withSandbox(of: string, use: (sandbox: Sandbox) => Promise<void>): Promise<void> {
  const sandbox = await server.create(of);
  try {
    await use(sandbox);
  } finally {
    await sandbox.terminate();
  }
}

async function output(sandbox: Sandbox, command: string, options: Parameters<Sandbox["exec"]>[1] = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await sandbox.exec(command, options);
  expect(exitCode, `${command}: ${stderr}`).toBe(0);
  return stdout.trimEnd();
}

describe("a sandbox of an image", () => {
  it("has the image's files, programs and package database, not the host's", async () => {
    await withSandbox(reference, async (sandbox) => {
      expect(await output(sandbox, "cat /srv/app/notes")).toBe("first");
      expect(await output(sandbox, "dpkg-query --list python3 | tail -1")).toMatch(/^ii {2}python3 /);
      expect(await output(sandbox, "apt-get --version | head -1")).toMatch(/^apt /);
      expect(await output(sandbox, "cat '/srv/naïve – ☃'")).toBe("a name of other letters");
      expect((await sandbox.exec(`ls ${server.dataDir} /work /root/.docker`)).exitCode).not.toBe(0);
    });
  });

  it("has owners, modes, links and attributes as the image says", async () => {
    await withSandbox(reference, async (sandbox) => {
      // With the size: programs are not told what they do not ask for, and `stat` would call a file empty.
      const stat = (path: string) => output(sandbox, `stat -c '%u %g %a %F, %s' ${path} | sed 's/,.*//'`, { user: "root" });
      expect(await stat("/srv/app")).toBe("1234 1234 750 directory");
      expect(await stat("/srv/app/notes")).toBe("1234 1234 640 regular file");
      expect(await stat("/srv/shared")).toBe("33 4321 2775 directory");
      expect(await stat("/srv/sticky")).toBe("0 0 1777 directory");
      expect(await stat("/srv/link")).toBe("1234 1234 777 symbolic link");
      expect(await stat("/etc/shadow")).toBe("0 42 640 regular file");
      expect(await output(sandbox, "readlink /srv/link /srv/absolute", { user: "root" })).toBe("app/notes\n/srv/app");
      const inodes = (paths: string) => output(sandbox, `stat -c %i ${paths} | uniq | wc -l`, { user: "root" });
      expect(await inodes("/srv/noted /srv/noted-again")).toBe("1");
      // On gVisor without root an owner is set inside, which makes a copy of each name.
      const kept = engineUnderTest === "microvm" || process.getuid?.() === 0;
      expect(await inodes("/srv/app/notes /srv/app/same-notes")).toBe(kept ? "1" : "2");
    });
  });

  it("has what later layers removed, replaced and wrote through links", async () => {
    await withSandbox(reference, async (sandbox) => {
      expect(await output(sandbox, "ls /opt/tool")).toBe("new");
      expect((await sandbox.exec("cat /etc/motd")).exitCode).not.toBe(0);
      expect(await output(sandbox, "cat /srv/app/through")).toBe("written through a link");
    });
  });

  it("runs programs as the image's user, in its folder, with its variables, unless told otherwise", async () => {
    await withSandbox(reference, async (sandbox) => {
      expect(await output(sandbox, 'id -un; pwd; echo "$GREETING"; echo "[$EMPTY]"; env | grep -c ^EMPTY=; echo "$HOME"')).toBe(
        "app\n/srv/app\nhello from the image\n[]\n1\n/srv/app",
      );
      expect(await output(sandbox, "id -un; pwd", { user: "root", cwd: "/tmp" })).toBe("root\n/tmp");
      expect(await output(sandbox, 'echo "$GREETING"', { env: { GREETING: "mine" } })).toBe("mine");
      expect(await output(sandbox, "echo mine > notes && cat notes")).toBe("mine");
      expect((await sandbox.exec("echo x > /etc/not-mine")).exitCode).not.toBe(0);
      await sandbox.files.write("/tmp/uploaded", "x");
      expect(await output(sandbox, "stat -c %U /tmp/uploaded")).toBe("root");
    });
  });

  it("lets no setuid script of the image make root of its user", async () => {
    await withSandbox(reference, async (sandbox) => {
      expect(await output(sandbox, "stat -c %a /usr/local/bin/as-root")).toBe("4755");
      expect(await output(sandbox, "as-root")).toBe("1234");
    });
  });

  it("runs setuid programs of the image as their owners where the kernel is the sandbox's own, and else as its user", async () => {
    await withSandbox(reference, async (sandbox) => {
      const own = engineUnderTest === "microvm";
      const ids = async (program: string) => [await output(sandbox, `${program} -u`), await output(sandbox, `${program} -g`)];
      expect(await ids("id-as-root")).toEqual(own ? ["0", "1234"] : ["1234", "1234"]);
      expect(await ids("id-as-another")).toEqual(own ? ["33", "4321"] : ["1234", "1234"]);
      // Made by a program, so on the sandbox's own disk.
      await sandbox.exec("install -m 4755 /usr/bin/id /usr/local/bin/id-made", { user: "root" });
      expect(await ids("id-made")).toEqual(own ? ["0", "1234"] : ["1234", "1234"]);
    });
  });

  it("runs code in the image's Python", async () => {
    await withSandbox(reference, async (sandbox) => {
      const { text, error } = await sandbox.runCode("import os, json, ssl, sqlite3\nopen('/etc/os-release').readline()");
      expect(error).toBeNull();
      expect(text).toContain(await output(sandbox, "head -1 /etc/os-release"));
      expect((await sandbox.runCode("os.getuid(), os.getcwd(), os.environ['GREETING']")).text).toBe(
        "(1234, '/srv/app', 'hello from the image')",
      );
    });
  });

  it("forks with its files and memory, and each child goes its own way", async () => {
    await withSandbox(reference, async (sandbox) => {
      await sandbox.runCode("x = 'of the parent'");
      await sandbox.exec("echo of the parent > state");
      const children = await sandbox.fork(3);
      try {
        await Promise.all(children.map((child, n) => child.exec(`echo ${n} > state; rm -f /srv/app/through; echo ${n} >> notes`)));
        for (const [n, child] of children.entries()) {
          expect(await output(child, "cat state")).toBe(String(n));
          expect((await child.runCode("x")).text).toBe("'of the parent'");
          expect(await output(child, "id -un; cat notes")).toBe(`app\nfirst${n}`);
        }
        expect(await output(sandbox, "cat state; cat through; echo; cat notes")).toBe("of the parent\nwritten through a link\nfirst");
      } finally {
        await Promise.all(children.map((child) => child.terminate()));
      }
    });
  });

  it("goes on after a pause with the same files and memory", async () => {
    await withSandbox(reference, async (sandbox) => {
      await sandbox.runCode("x = 41");
      await sandbox.exec("echo kept > state");
      await sandbox.pause();
      await sandbox.resume();
      expect((await sandbox.runCode("x + 1")).text).toBe("42");
      expect(await output(sandbox, "cat state; stat -c %u state; id -un")).toBe("kept\n1234\napp");
    });
  });

  it("changes nothing in the layers and the file system image that it is made of", async () => {
    let before: string[] = [];
    await withSandbox(reference, async (sandbox) => {
      before = contentOfRoots();
      expect(before).not.toEqual([]);
      await sandbox.exec("echo changed > /usr/bin/env; rm -rf /srv /etc /usr/lib/python3; chmod 777 /usr/local/bin/as-root", {
        user: "root",
      });
      expect((await sandbox.exec("cat /srv/app/notes", { user: "root", cwd: "/" })).exitCode).not.toBe(0);
    });
    expect(contentOfRoots()).toEqual(before);
    await withSandbox(reference, async (sandbox) => expect(await output(sandbox, "cat /srv/app/notes")).toBe("first"));
  });

  it("lies in folders of the host that only the server's user may enter", () => {
    expect(statSync(server.layersDir).mode & 0o777).toBe(0o700);
    for (const name of readdirSync(server.dataDir)) {
      if (lstatSync(path.join(server.dataDir, name)).isDirectory())
        expect(statSync(path.join(server.dataDir, name)).mode & 0o077, name).toBe(0);
    }
  });
});

describe("an image of another form", () => {
  it("is chosen from an index by this machine's processor", async () => {
    const both = indexOf([
      { image: imageOf([which("foreign")], {}, { architecture: foreignArchitecture }), architecture: foreignArchitecture },
      { image: imageOf([which("ours")]), architecture: ourArchitecture },
    ]);
    await withSandbox(await registry.push(both, "team/both:1"), async (sandbox) => expect(await sandbox.files.read("/which")).toBe("ours"));
  });

  it("has layers that are compressed in any of the three ways, or lie about it", async () => {
    const layers = [which("gzip"), which("zstd", "zstd"), which("plain", "none")];
    const mislabeled = { ...which("labelled as gzip", "zstd"), mediaType: mediaTypes.layer.gzip };
    for (const [index, image] of [imageOf(layers), imageOf([...layers, mislabeled])].entries()) {
      await withSandbox(await registry.push(image, `team/compressed:${index}`), async (sandbox) => {
        expect(await sandbox.files.read("/which")).toBe(["plain", "labelled as gzip"][index]);
      });
    }
  });

  it("is named by its digest", async () => {
    const image = imageOf([which("by digest")]);
    const byDigest = await registry.push(image, "team/digest");
    expect(byDigest).toBe(`${registry.host}/team/digest@${image.manifest.digest}`);
    await withSandbox(byDigest, async (sandbox) => expect(await sandbox.files.read("/which")).toBe("by digest"));
  });

  it("needs no shell, no libraries and no folders to have files read and written, and says that it has no shell", async () => {
    await withSandbox(await registry.push(imageOf([which("bare")]), "team/bare:1"), async (sandbox) => {
      await sandbox.files.write("/tmp/new", "written");
      expect(await sandbox.files.read("/tmp/new")).toBe("written");
      await expect(sandbox.exec(["/bin/sh", "-c", "true"])).rejects.toMatchObject({ code: "exec_stream_error" });
    });
  });
});

function which(content: string, compression: Compression = "gzip"): LayerBlob {
  return layerOf([{ name: "which", content }], compression);
}

/** What sandboxes share. A layer's own folder has the time at which it was last used. */
function contentOfRoots(): string[] {
  const layers = readdirSync(server.layersDir).flatMap((layer) => contentOf(path.join(server.layersDir, layer)));
  return engineUnderTest === "microvm" ? [...layers, ...contentOf(path.join(server.dataDir, "microvm/images"))] : layers;
}

/** Every file's size, mode and place, and the content of small ones. */
function contentOf(dir: string): string[] {
  return readdirSync(dir).flatMap((name) => {
    const file = path.join(dir, name);
    const { size, mode, mtimeMs, uid, gid } = lstatSync(file);
    const line = [file, size, mode, mtimeMs, uid, gid].join(" ");
    if (lstatSync(file).isDirectory()) return [line, ...contentOf(file)];
    return [lstatSync(file).isFile() && size < 200 ? `${line} ${readFileSync(file, "latin1")}` : line];
  });
}
