import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DockerConfig } from "./docker-config.ts";

const secret = "s3cret:with:colons";
const auth = Buffer.from(`alice:${secret}`).toString("base64");

describe("credentials of docker's configuration", () => {
  let dir: string;
  let file: string;
  const pathBefore = process.env.PATH;
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "mitos-docker-"));
    file = path.join(dir, "config.json");
    process.env.PATH = `${dir}:${pathBefore}`;
  });
  afterEach(async () => {
    process.env.PATH = pathBefore;
    await rm(dir, { recursive: true });
  });

  async function credentialsOf(host: string, config: unknown) {
    await writeFile(file, typeof config === "string" ? config : JSON.stringify(config));
    return await new DockerConfig(file).credentialsOf(host);
  }

  async function helper(name: string, script: string): Promise<void> {
    const program = path.join(dir, `docker-credential-${name}`);
    await writeFile(program, `#!/bin/sh\n${script}\n`);
    await chmod(program, 0o755);
  }

  it.each([
    ["registry.example", { auths: { "registry.example": { auth } } }],
    ["registry.example:5000", { auths: { "https://registry.example:5000/v2/": { auth } } }],
    ["docker.io", { auths: { "https://index.docker.io/v1/": { auth } } }],
    ["docker.io", { auths: { "registry-1.docker.io": { auth } } }],
    ["registry.example", { auths: { "registry.example": { username: "alice", password: secret } } }],
  ])("of %s are found in %j", async (host, config) => {
    expect((await credentialsOf(host, config))?.reveal()).toEqual({ user: "alice", secret });
  });

  it.each([
    ["another port", "registry.example:5001"],
    ["a longer name", "registry.example.evil"],
    ["another registry", "docker.io"],
  ])("are not those of %s", async (_, host) => {
    expect(await credentialsOf(host, { auths: { "registry.example:5000": { auth }, "registry.example": { auth } } })).toBeUndefined();
  });

  it("are none without a file, and without an entry", async () => {
    expect(await new DockerConfig(path.join(dir, "none")).credentialsOf("docker.io")).toBeUndefined();
    expect(await credentialsOf("docker.io", {})).toBeUndefined();
    expect(await credentialsOf("docker.io", { auths: { "docker.io": {} } })).toBeUndefined();
  });

  it("may be an identity token", async () => {
    const found = await credentialsOf("registry.example", { auths: { "registry.example": { auth, identitytoken: "token" } } });
    expect(found?.isIdentityToken).toBe(true);
    expect(found?.reveal().secret).toBe("token");
  });

  it("come from the registry's own helper first, which is told the registry on its standard input", async () => {
    await helper(
      "own",
      `read -r server; [ "$1" = get ] && echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"of $server\\",\\"Secret\\":\\"own\\"}"`,
    );
    await helper("all", `echo '{"Username":"<token>","Secret":"identity"}'`);
    const config = { auths: { "registry.example": { auth } }, credHelpers: { "registry.example": "own" }, credsStore: "all" };
    expect((await credentialsOf("registry.example", config))?.reveal()).toEqual({ user: "of registry.example", secret: "own" });
    expect((await credentialsOf("other.example", config))?.isIdentityToken).toBe(true);
  });

  it("are asked of a helper for Docker Hub under the name that docker login uses", async () => {
    await helper("all", `read -r server; echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"x\\"}"`);
    expect((await credentialsOf("docker.io", { credsStore: "all" }))?.reveal().user).toBe("https://index.docker.io/v1/");
  });

  it("come from the file when the helper has none", async () => {
    await helper("all", "echo credentials not found in native keychain; exit 1");
    expect((await credentialsOf("registry.example", { auths: { "registry.example": { auth } }, credsStore: "all" }))?.reveal().user).toBe(
      "alice",
    );
  });

  it.each([
    ["fails", "echo secret-in-output; exit 3"],
    ["answers with something else", "echo secret-in-output"],
    ["says too much", "while echo secret-in-output; do :; done"],
  ])("cannot be read when the helper %s, and its output is not told", async (_, script) => {
    await helper("bad", script);
    const failure = await credentialsOf("registry.example", { credsStore: "bad" }).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unauthorized" });
    expect(inspect(failure, { depth: 10, showHidden: true })).not.toContain("secret-in-output");
  });

  it.each(["../evil", "a b", "a;b", "$(id)"])("cannot be read when the helper's name is %j", async (name) => {
    await expect(credentialsOf("registry.example", { credsStore: name })).rejects.toMatchObject({ code: "unauthorized" });
  });

  it.each([
    ["is no JSON", `{"auths": ${secret}`],
    ["is a list", `["${secret}"]`],
    ["has no password", { auths: { "registry.example": { auth: Buffer.from(secret.replaceAll(":", "")).toString("base64") } } }],
  ])("are an error that does not quote the file when it %s", async (_, config) => {
    const failure = await credentialsOf("registry.example", config).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unauthorized" });
    expect(inspect(failure, { depth: 10, showHidden: true })).not.toContain("s3cret");
  });

  it("show themselves nowhere", async () => {
    const found = await credentialsOf("registry.example", { auths: { "registry.example": { auth } } });
    for (const shown of [inspect({ found }, { depth: 10, showHidden: true }), JSON.stringify({ found }), String(found)]) {
      expect(shown).not.toContain("s3cret");
      expect(shown).not.toContain("alice");
    }
  });
});
