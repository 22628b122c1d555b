import path from "node:path";
import type { KeyJson } from "@mitos/sdk";
import { Command } from "commander";
import { connectionOf, duration, positiveInteger } from "../context.ts";
import { removeCredentials, saveCredentials } from "../credentials.ts";
import { dataDirKeys, type KeyStore, type NewKey, serverKeys } from "../key-store.ts";
import { isJson, type OutputOptions, outputFlags, print, printJson, printTable } from "../output.ts";

export function authCommand(): Command {
  return new Command("auth").addCommand(loginCommand()).addCommand(whoamiCommand()).addCommand(logoutCommand()).addCommand(keysCommand());
}

function loginCommand(): Command {
  return new Command("login")
    .description("check a key with the server and keep it for later commands and SDKs")
    .requiredOption("--token <key>", "the key")
    .action(async ({ token }: { token: string }, command: Command) => {
      const { owner, organisation } = await whoami(command, token);
      saveCredentials({ token, email: owner, default_org: organisation });
      print(`logged in as ${owner} (default org ${organisation || "-"})`);
    });
}

function whoamiCommand(): Command {
  const command = new Command("whoami").description("ask the server whose key this is");
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (options: OutputOptions) => {
    const { owner, organisation, scopes } = await whoami(command);
    if (isJson(options)) printJson({ email: owner, orgs: [organisation], scopes });
    else print(`${owner}\norgs: ${organisation}\nscopes: ${scopes.join(", ")}`);
  });
}

function logoutCommand(): Command {
  return new Command("logout").description("forget the key that was kept; it stays valid until it is revoked").action(() => {
    removeCredentials();
    print("logged out");
  });
}

async function whoami(command: Command, token?: string): Promise<KeyJson> {
  const { HttpClient } = await import("@mitos/sdk");
  const connection = connectionOf(command);
  const http = HttpClient.fromAuth(token ? { ...connection, apiKey: token } : connection);
  return (await http.get("/v1/whoami")) as KeyJson;
}

function keysCommand(): Command {
  return new Command("keys")
    .description("make, list and revoke keys; needs a key with the scope admin, or the data directory of a stopped server")
    .addCommand(createCommand())
    .addCommand(listCommand())
    .addCommand(revokeCommand());
}

interface CreateOptions {
  name: string;
  org?: string;
  owner?: string;
  scopes: string[];
  ttl: number;
  maxSandboxes?: number;
  maxMemoryMib?: number;
  maxStreams?: number;
  rate?: number;
  dataDir?: string;
}

const dataDirOption = ["--data-dir <dir>", "work in the data directory of a server that is not running, without a key"] as const;

function createCommand(): Command {
  return new Command("create")
    .description("make a key and print it; it is shown only now")
    .requiredOption("--name <name>", "what it is for")
    .option("--org <organisation>", "whose sandboxes are theirs (default: that of the key in use)")
    .option("--owner <owner>", "likewise, within the organisation")
    .option("--scopes <list>", "of read, execute, lifecycle, admin", commaSeparated, ["read", "execute", "lifecycle"])
    .option("--ttl <duration>", "how long it is valid, such as 720h or 1h30m; 0: until it is revoked", duration("--ttl"), 0)
    .option("--max-sandboxes <n>", "sandboxes of its owner that have not ended (default: 1000)", positiveInteger("--max-sandboxes"))
    .option("--max-memory-mib <n>", "sum of their memory limits (default: 524288)", positiveInteger("--max-memory-mib"))
    .option("--max-streams <n>", "streams open at once with the key (default: 256)", positiveInteger("--max-streams"))
    .option("--rate <n>", "requests a second with the key (default: 200)", positiveInteger("--rate"))
    .option(...dataDirOption)
    .action(async (options: CreateOptions, command: Command) => {
      const { name, owner, org: organisation, scopes, ttl: ttlSeconds, maxSandboxes, maxMemoryMib, maxStreams, rate } = options;
      const request: NewKey = {
        name,
        owner,
        organisation,
        scopes,
        ttlSeconds,
        maxSandboxes,
        maxMemoryMiB: maxMemoryMib,
        maxStreams,
        requestsPerSecond: rate,
      };
      print(await withKeys(command, options, (keys) => keys.create(request), true));
      process.stderr.write("Keep it now: it is not shown again. Use it with `mitos auth login --token <key>` or MITOS_API_KEY.\n");
    });
}

function listCommand(): Command {
  const command = new Command("ls")
    .alias("list")
    .description("list the keys, without what only their holders know")
    .option("--org <organisation>", "of one organisation")
    .option(...dataDirOption);
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (options: OutputOptions & { org?: string; dataDir?: string }) => {
    const rows = await withKeys(command, options, (keys) => keys.list(options.org));
    if (isJson(options)) printJson({ keys: rows.map(({ id, name, prefix, scopes, status }) => ({ id, name, prefix, scopes, status })) });
    else if (rows.length === 0) print("No API keys found.");
    else {
      printTable(
        ["ID", "NAME", "PREFIX", "SCOPES", "STATUS"],
        rows.map((row) => [row.id, row.name, row.prefix, row.scopes.join(","), row.status]),
      );
    }
  });
}

function revokeCommand(): Command {
  return new Command("revoke")
    .description("make a key worthless, at once")
    .argument("<id>", "its id, as `auth keys ls` shows it")
    .option(...dataDirOption)
    .action(async (id: string, options: { dataDir?: string }, command: Command) => {
      await withKeys(command, options, (keys) => keys.revoke(id));
      print(`revoked ${id}`);
    });
}

/** @param mayCreate - whether the data directory may be a new one */
async function withKeys<T>(
  command: Command,
  { dataDir }: { dataDir?: string },
  work: (keys: KeyStore) => Promise<T>,
  mayCreate = false,
): Promise<T> {
  if (dataDir === undefined) {
    const { HttpClient } = await import("@mitos/sdk");
    return work(serverKeys(HttpClient.fromAuth(connectionOf(command))));
  }
  using keys = await dataDirKeys(path.resolve(dataDir), mayCreate);
  return await work(keys);
}

function commaSeparated(text: string): string[] {
  return text
    .split(",")
    .map((word) => word.trim())
    .filter((word) => word !== "");
}
