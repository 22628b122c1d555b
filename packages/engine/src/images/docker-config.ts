import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import path from "node:path";
import { inspect } from "node:util";
import { MitosError } from "@mitos/protocol";
import { dockerHub, normalizeHost } from "./reference.ts";

/** What opens a registry. Shows itself nowhere: neither in JSON nor when it is inspected. */
export class Credentials {
  readonly #user: string;
  readonly #secret: string;
  /** The secret is an identity token, to be exchanged at the token service. */
  readonly isIdentityToken: boolean;

  constructor(user: string, secret: string, isIdentityToken = false) {
    this.#user = user;
    this.#secret = secret;
    this.isIdentityToken = isIdentityToken;
  }

  reveal(): { user: string; secret: string } {
    return { user: this.#user, secret: this.#secret };
  }

  toJSON(): string {
    return "[credentials]";
  }

  [inspect.custom](): string {
    return "[credentials]";
  }
}

interface Entry {
  readonly auth?: unknown;
  readonly username?: unknown;
  readonly password?: unknown;
  readonly identitytoken?: unknown;
}

interface Config {
  readonly auths: Readonly<Record<string, Entry>>;
  readonly credHelpers: Readonly<Record<string, unknown>>;
  readonly credsStore: unknown;
}

const configBytesMax = 4 * 1024 * 1024;
const answerBytesMax = 64 * 1024;
const helperMsMax = 30_000;
/** Under which Docker keeps what opens Docker Hub. */
const dockerHubKey = "https://index.docker.io/v1/";
/** Docker's mark for a secret that is an identity token. */
const identityTokenUser = "<token>";

/** Credentials as `docker login` keeps them. Read when they are needed, so that a login holds at once. */
export class DockerConfig {
  readonly #file: string;

  /** @param file - default: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json` */
  constructor(file = path.join(process.env.DOCKER_CONFIG || path.join(homedir(), ".docker"), "config.json")) {
    this.#file = file;
  }

  /**
   * Of a registry, from its own helper, else from the store of all, else from the file.
   *
   * @param host - as in references
   * @throws unauthorized when what is configured cannot be read
   */
  async credentialsOf(host: string): Promise<Credentials | undefined> {
    const config = await this.#read();
    if (!config) return undefined;
    const helper = find(config.credHelpers, host) ?? config.credsStore;
    if (typeof helper === "string" && helper !== "") {
      const found = await askHelper(helper, host === dockerHub ? dockerHubKey : host);
      if (found) return found;
    }
    const entry = find(config.auths, host);
    return entry === undefined ? undefined : this.#ofEntry(entry, host);
  }

  async #read(): Promise<Config | undefined> {
    let text: string;
    try {
      text = await readFile(this.#file, "utf8");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code === "ENOTDIR") return undefined;
      throw unreadable(`${this.#file}: ${code}`);
    }
    const value = text.length <= configBytesMax ? parse(text) : undefined;
    if (!isRecord(value)) throw unreadable(`${this.#file} is not a JSON object`);
    const { auths, credHelpers, credsStore } = value;
    return {
      auths: isRecord(auths) ? (auths as Record<string, Entry>) : {},
      credHelpers: isRecord(credHelpers) ? credHelpers : {},
      credsStore,
    };
  }

  #ofEntry(entry: Entry, host: string): Credentials | undefined {
    if (!isRecord(entry)) throw unreadable(`${this.#file}: the entry of ${host} is not an object`);
    const { auth, username, password, identitytoken } = entry;
    if (typeof identitytoken === "string" && identitytoken !== "") return new Credentials(identityTokenUser, identitytoken, true);
    if (typeof username === "string" && typeof password === "string") return new Credentials(username, password);
    if (typeof auth !== "string" || auth === "") return undefined;
    const [, user, secret] = /^([^:]*):(.*)$/s.exec(Buffer.from(auth, "base64").toString("utf8").replace(/\0+$/, "")) ?? [];
    if (user === undefined || secret === undefined) throw unreadable(`${this.#file}: the entry of ${host} has no user and password`);
    return new Credentials(user, secret);
  }
}

/** Keys are hosts, some with scheme and path: `https://index.docker.io/v1/`. An exact one comes first. */
function find<T>(entries: Readonly<Record<string, T>>, host: string): T | undefined {
  if (Object.hasOwn(entries, host)) return entries[host];
  return Object.entries(entries).find(([key]) => normalizeHost(key.replace(/^https?:\/\//, "").replace(/\/.*$/, "")) === host)?.[1];
}

/**
 * Runs `docker-credential-<name> get` with the registry on its standard input.
 *
 * @returns undefined when it has none
 */
async function askHelper(name: string, server: string): Promise<Credentials | undefined> {
  const program = `docker-credential-${name}`;
  if (!/^[\w.-]+$/.test(name)) throw unreadable("a credential helper's name has other characters than letters, digits, '.', '_' and '-'");
  const { code, stdout, failure } = await run(program, server);
  if (failure !== undefined) throw unreadable(`${program}: ${failure}`);
  if (code !== 0) {
    // The protocol's only way to say that there is nothing.
    if (/credentials not found/i.test(stdout)) return undefined;
    throw unreadable(`${program} ended with ${code}`);
  }
  const answer = parse(stdout);
  if (!isRecord(answer) || typeof answer.Username !== "string" || typeof answer.Secret !== "string") {
    throw unreadable(`${program} answers with something else than a user and a secret`);
  }
  return new Credentials(answer.Username, answer.Secret, answer.Username === identityTokenUser);
}

function run(program: string, input: string): Promise<{ code: number | null; stdout: string; failure?: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, ["get"], { stdio: ["pipe", "pipe", "ignore"], timeout: helperMsMax, killSignal: "SIGKILL" });
    const chunks: Buffer[] = [];
    let bytes = 0;
    child.stdout.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > answerBytesMax) child.kill("SIGKILL");
      else chunks.push(chunk);
    });
    child.stdin.on("error", () => {}); // it need not read
    child.stdin.end(`${input}\n`);
    child.once("error", (error: NodeJS.ErrnoException) => resolve({ code: null, stdout: "", failure: error.code ?? "cannot be run" }));
    child.once("close", (code, signal) => {
      const stdout = Buffer.concat(chunks).toString("utf8");
      if (signal === null) resolve({ code, stdout });
      else
        resolve({
          code,
          stdout: "",
          failure: bytes > answerBytesMax ? "says too much" : `did not end within ${helperMsMax / 1000} seconds`,
        });
    });
  });
}

/** Without the parser's own message, which quotes what it has read. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unreadable(cause: string): MitosError {
  return new MitosError("unauthorized", {
    message: "the credentials of the registry cannot be read",
    cause,
    remediation: "Repair Docker's config.json or its credential helper for the user of the server, or log in anew: docker login.",
  });
}
