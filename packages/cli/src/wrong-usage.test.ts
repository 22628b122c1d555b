import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Command } from "commander";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { run } from "./main.ts";
import { buildProgram } from "./program.ts";
import { firstLine, start } from "./testing.ts";

// Every command with every kind of bad input, in this process: a process each would take minutes.
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-usage-"));
const all = await buildProgram("all");
const commands = leaves(all, []);

function leaves(command: Command, words: readonly string[]): { words: readonly string[]; command: Command }[] {
  if (command.commands.length === 0) return [{ words, command }];
  return command.commands.flatMap((child) => leaves(child, [...words, child.name()]));
}

let printed: { out: string; err: string };

beforeEach(() => {
  printed = { out: "", err: "" };
  const into = (key: "out" | "err") => (text: unknown) => {
    printed[key] += String(text);
    return true;
  };
  vi.spyOn(process.stdout, "write").mockImplementation(into("out"));
  vi.spyOn(process.stderr, "write").mockImplementation(into("err"));
  const env = { MITOS_CONFIG_DIR: dir, MITOS_BASE_URL: "", MITOS_API_KEY: "", MITOS_DEBUG: "", HOME: dir, KUBERNETES_SERVICE_HOST: "" };
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});
afterAll(() => rmSync(dir, { recursive: true }));

async function refused(args: readonly string[]): Promise<number> {
  const code = await run(args);
  const what = `mitos ${args.join(" ")}`;
  expect(printed.out, what).toBe("");
  expect(printed.err, what).toMatch(/^error: [^\n]+\n(cause: [^\n]+\n)?next step: [^\n]+\n$/);
  expect(printed.err, what).not.toMatch(/\bat .*:\d+:\d+|mitos itself failed/);
  printed.err = "";
  return code;
}

/** Something acceptable for each argument. */
const operandsOf = ({ registeredArguments }: Command): string[] =>
  registeredArguments.map((argument) => {
    if (argument.argChoices) return argument.argChoices[0]!;
    const samples: Record<string, string> = {
      port: "80",
      pid: "7",
      source: "nope:a",
      target: path.join(dir, "target"),
      command: "true",
      reference: "registry.invalid/tool:1",
    };
    return samples[argument.name()] ?? "nope";
  });
const mandatoryOf = ({ options }: Command): string[] => options.flatMap(({ mandatory, long }) => (mandatory ? [long!, "x"] : []));

describe("every command", () => {
  it("refuses a flag that it does not have with exit code 2", async () => {
    for (const { words } of commands) expect(await refused([...words, "--bogus"])).toBe(2);
  });

  it("refuses a missing argument or flag with exit code 2", async () => {
    const demanding = commands.filter(({ command }) => command.registeredArguments.length > 0 || mandatoryOf(command).length > 0);
    expect(demanding.length).toBeGreaterThan(15);
    for (const { words } of demanding) expect(await refused(words)).toBe(2);
  });

  it("refuses a word too many with exit code 2", async () => {
    for (const { words, command } of commands.filter(({ command: { registeredArguments } }) => !registeredArguments.at(-1)?.variadic)) {
      expect(await refused([...words, ...operandsOf(command), ...mandatoryOf(command), "too-many"])).toBe(2);
    }
  });

  it("refuses a flag without its value with exit code 2", async () => {
    for (const { words, command } of commands) {
      for (const { long } of command.options.filter(({ required }) => required)) {
        // At the end of a program's line it would be the program's.
        expect(await refused([...words, ...(command.registeredArguments.at(-1)?.variadic ? [] : operandsOf(command)), long!])).toBe(2);
      }
    }
  });

  it("refuses a value of the wrong kind with exit code 2", async () => {
    const wrong: Record<string, string> = {
      "--timeout": "soon",
      "--count": "-1",
      "--replicas": "0",
      "--tail": "0",
      "--output": "yaml",
      "--env": "=x",
      "--ttl": "forever",
      "--rate": "1.5",
      "--max-sandboxes": "x",
      "--max-memory-mib": "x",
      "--max-streams": "x",
      "--max-streams-per-sandbox": "x",
      "--max-exec-timeout-seconds": "x",
      "--preview-ttl-seconds": "0",
      "--registry": "https://registry.example",
      "--mirror": "docker.io",
      "--insecure-registry": "registry.example/team",
      "--image-cache": "20GB",
      "--pool-size": "257",
      "--engine": "bogus",
      "--accel": "turbo",
      "--log-level": "loud",
      "--addr": "nowhere",
      "--older-than": "long ago",
      "--build-arg": "=x",
      "--egress": "some",
    };
    const tried = new Set<string>();
    for (const { words, command } of commands) {
      for (const { long } of command.options.filter((option) => wrong[option.long!] !== undefined)) {
        tried.add(long!);
        expect(await refused([...words, long!, wrong[long!]!, ...operandsOf(command), ...mandatoryOf(command)])).toBe(2);
      }
    }
    expect([...tried].sort()).toEqual(Object.keys(wrong).sort());
    for (const mirror of [
      "=mirror.example",
      "docker.io=",
      "docker.io=http://mirror.example",
      "docker.io=a.example=b.example",
      "alone=a.example",
    ])
      expect(await refused(["serve", "--mirror", mirror])).toBe(2);
    for (const port of ["0", "65536", "http"]) expect(await refused(["sandbox", "preview", "sb", port])).toBe(2);
    expect(await refused(["logs", "sb", "one"])).toBe(2);
    for (const more of [["7"], ["--follow"], ["--tail", "1"], ["-o", "json"], ["--json"]])
      expect(await refused(["logs", "sb", "--console", ...more])).toBe(2);
    expect(await refused(["completion", "tcsh"])).toBe(2);
    expect(await refused(["run", "--keep", "--rm", "true"])).toBe(2);
    expect(await refused(["cp", "a", "b"])).toBe(2);
    expect(await refused(["cp", "sb-1:a", "sb-2:b"])).toBe(2);
    expect(await refused(["template", "build", "--name", "x"])).toBe(2);
    expect(await refused(["template", "build", "--name", "x", "--dockerfile", "a", "--spec", "b"])).toBe(2);
    expect(await refused(["template", "build", "--name", "x", "--spec", "b", "--build-arg", "A=1"])).toBe(2);
    for (const name of ["a/b", "with space", "..", "-x", "x".repeat(65), ""]) {
      for (const verb of ["rm", "logs"]) expect(await refused(["template", verb, "--", name])).toBe(2);
      expect(await refused(["template", "push", "--", name, "registry.invalid/tool:1"])).toBe(2);
      expect(await refused(["template", "build", `--name=${name}`, "--dockerfile", dockerfile])).toBe(2);
    }
    for (const pool of ["a/b", "with space", "..", "live:", "live:../x"]) {
      for (const words of [
        ["run", "true"],
        ["sandbox", "create"],
      ])
        expect(await refused([`--pool=${pool}`, ...words])).toBe(2);
    }
    for (const words of [["pull"], ["push", "app"]]) expect(await refused(["template", ...words, "https://registry.example/x"])).toBe(2);
    expect(await refused(["prune"])).toBe(2);
    for (const engine of [[], ["--engine", "gvisor"], ["--engine", "mock"]])
      for (const command of ["serve", "quickstart"]) expect(await refused([command, ...engine, "--accel", "tcg"])).toBe(2);
    for (const [name, value] of [
      ["MITOS_ENGINE", "bogus"],
      ["MITOS_ACCEL", "turbo"],
    ] as const) {
      vi.stubEnv(name, value);
      expect(await refused(["serve"])).toBe(2);
      vi.stubEnv(name, undefined);
    }
  });

  it("takes an empty variable for none", async () => {
    for (const name of ["MITOS_ENGINE", "MITOS_ACCEL"]) vi.stubEnv(name, "");
    expect(await refused(["serve", "--accel", "tcg"])).toBe(2);
    // Taken for a value, it would be refused as such.
    expect(await run(["serve", "--engine", "mock", "--data-dir", "/dev/null/data"])).toBe(1);
    expect(printed.err).toContain("/dev/null/data");
  });

  it.each([
    ["rum", "run"],
    ["sandbx", "sandbox"],
    ["sandbox lss", "ls"],
    ["auth key", "keys"],
    ["sandbox ls --outptu json", "--output"],
  ])("suggests what `%s` may have meant", async (line, meant) => {
    expect(await run(line.split(" "))).toBe(2);
    expect(printed.err).toContain(`next step: Did you mean ${meant}?`);
    expect(printed.err).toMatch(/See `mitos[a-z ]* --help`/);
  });

  it("has help, on standard output", async () => {
    for (const { words } of commands) expect(await run([...words, "--help"])).toBe(0);
    expect(printed.out.match(/^Usage: mitos /gm)).toHaveLength(commands.length);
    expect(printed.out.match(/^Global flags:$/gm)).toHaveLength(commands.length);
    expect(printed.err).toBe("");
  });
});

const dockerfile = path.join(dir, "Dockerfile");
writeFileSync(dockerfile, "FROM base\n");
/** What commands need beside what they call mandatory. */
const needed: Record<string, readonly string[]> = { "template build": ["--dockerfile", dockerfile], prune: ["--yes"] };

/** Those that talk to a server, with arguments that are right. */
const remote = commands
  .filter(({ words }) => !/^(quickstart|serve|shell|setup microvm|doctor|completion|version|auth logout)$/.test(words.join(" ")))
  .map(({ words, command }) => {
    const more = needed[words.join(" ")] ?? [];
    return { words, args: [...words, ...mandatoryOf(command), ...more, ...operandsOf(command)] };
  });

describe("every command that talks to a server", () => {
  it("says so when none answers, and how to start one, with exit code 1", async () => {
    for (const { args } of remote) {
      expect(await run(["--server", "127.0.0.1:2", "--api-key", "k", ...args])).toBe(1);
      expect(printed.err).toMatch(/^error: no answer from http:\/\/127\.0\.0\.1:2\ncause: .*\nnext step: .*mitos serve/);
      printed.err = "";
    }
  });

  it("refuses a cluster with exit code 2, and an address that is none with a failure", async () => {
    for (const { args } of remote) expect(await refused([...args.slice(0, 1), "--kubeconfig", "file", ...args.slice(1)])).toBe(2);
    for (const { args } of remote) expect(await refused(["--server", "no host", "--api-key", "k", ...args])).toBe(1);
  });

  it("is refused inside a cluster unless a gateway or a server is named", async () => {
    vi.stubEnv("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    expect(await run(["sandbox", "ls"])).toBe(2);
    expect(printed.err).toMatch(
      /^error: this version does not talk to clusters\ncause: .*KUBERNETES_SERVICE_HOST.*\nnext step: .*mitos serve/,
    );
    printed.err = "";
    expect(await refused(["--server", "127.0.0.1:2", "sandbox", "ls"])).toBe(1);
    vi.stubEnv("MITOS_GATEWAY_SERVICE_HOST", "127.0.0.1");
    vi.stubEnv("MITOS_GATEWAY_SERVICE_PORT", "2");
    expect(await run(["sandbox", "ls"])).toBe(1);
    expect(printed.err).toContain("no answer from http://127.0.0.1:2\n");
  });

  describe("with a real one", () => {
    let server: ReturnType<typeof start>;
    let url: string;
    let adminKey: string;
    beforeAll(async () => {
      const data = ["--data-dir", path.join(dir, "data")];
      const key = start(["auth", "keys", "create", "--name", "a", "--scopes", "admin", ...data], { HOME: dir });
      adminKey = (await key.ended).out.trim();
      server = start(["serve", "--auth", "--engine", "mock", "--addr", "127.0.0.1:0", ...data], { HOME: dir });
      url = (await firstLine(server)).replace("Mitos listens on ", "");
      expect(url, server.seen.err).toMatch(/^http:/);
    });
    afterAll(async () => {
      server.child.kill("SIGTERM");
      expect((await server.ended).code).toBe(0);
    });

    it("says that a key is wrong, without repeating it, with exit code 1", async () => {
      for (const { args } of remote.filter(({ words }) => words.join(" ") !== "auth login")) {
        expect(await run(["--server", url, "--api-key", "mitos_sk_wrong", ...args])).toBe(1);
        // So many wrong ones from one address are slowed down in the end.
        expect(printed.err).toMatch(/^error: (the key is missing or wrong|too many requests)\ncause: .*\nnext step: /);
        expect(printed.err).not.toContain("mitos_sk_wrong");
        printed.err = "";
      }
    });

    it("exits with 3 for an id that does not exist", async () => {
      const withId = remote.filter(({ args }) => args.some((word) => /^nope/.test(word)));
      expect(withId.length).toBeGreaterThan(11);
      for (const { args } of withId) expect(await refused(["--server", url, "--api-key", adminKey, ...args])).toBe(3);
    });
  });
});
