import { readPrivate, savePrivate } from "./private-files.ts";

/** What `mitos init` keeps: a server, and the key that goes to it alone. */
export interface Config {
  readonly endpoint: string;
  readonly api_key: string;
}

const name = "config.json";

/** @returns undefined when there is none, or none that can be understood (`mitos doctor` says so) */
export function savedConfig(): Config | undefined {
  const text = readPrivate(name);
  return text === undefined ? undefined : parse(text);
}

export function saveConfig(config: Config): void {
  savePrivate(name, config);
}

function parse(text: string): Config | undefined {
  try {
    const { endpoint, api_key } = JSON.parse(text) as Partial<Config>;
    return typeof endpoint === "string" && typeof api_key === "string" ? { endpoint, api_key } : undefined;
  } catch {
    return undefined;
  }
}
