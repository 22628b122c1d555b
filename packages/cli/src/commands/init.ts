import type { HttpClient, KeyJson } from "@mitos/sdk";
import { Command } from "commander";
import { type Config, saveConfig, savedConfig } from "../config.ts";
import { connectionOf } from "../context.ts";
import { UsageError } from "../exit.ts";
import { print } from "../output.ts";
import { configFile } from "../private-files.ts";

export function initCommand(): Command {
  return new Command("init")
    .option("--check", "only look whether what is saved is valid")
    .action(async ({ check = false }: { check?: boolean }, command: Command) => {
      const { HttpClient } = await import("@mitos/sdk");
      if (check) {
        const saved = requireSaved();
        const http = HttpClient.fromAuth({ baseUrl: saved.endpoint, apiKey: saved.api_key });
        print(`valid: ${await describeKey(http)} at ${http.baseUrl}`);
        return;
      }
      const connection = connectionOf(command);
      const key = connection.apiKey;
      if (!key)
        throw new UsageError("no key is known", "Give one with --api-key or MITOS_API_KEY; a server without keys needs no `mitos init`.");
      const http = HttpClient.fromAuth(connection);
      const owner = await describeKey(http);
      saveConfig({ endpoint: http.baseUrl, api_key: key });
      print(`saved to ${configFile("config.json")}: ${owner} at ${http.baseUrl}`);
    });
}

function requireSaved(): Config {
  const saved = savedConfig();
  if (saved) return saved;
  throw new UsageError(
    `${configFile("config.json")} is missing or says nothing`,
    "Save a key first: mitos init --api-key <key> --server <url>.",
  );
}

/** Asks the server whose key it is. @throws unauthorized when it is not valid there */
async function describeKey(http: HttpClient): Promise<string> {
  try {
    const { name, owner } = (await http.get("/v1/whoami")) as KeyJson;
    return `the key '${name}' of ${owner}`;
  } catch (error) {
    // A server that asks for no keys takes any; one that does not know the question is asked something that needs a key.
    if (!(error instanceof Error && "status" in error && (error.status === 501 || error.status === 404))) throw error;
    await http.get("/v1/sandboxes?limit=1");
    return "a key that the server takes";
  }
}
