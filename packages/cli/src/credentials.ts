import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";

/** What `auth login` keeps for later commands and for every SDK. */
export interface Credentials {
  readonly token: string;
  readonly email: string;
  readonly default_org: string;
}

/** For the user alone, and whole or not at all. */
export function saveCredentials(credentials: Credentials): void {
  const file = credentialsFile();
  mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  const fresh = `${file}.${process.pid}`;
  // `wx`: never through a link that somebody put there.
  rmSync(fresh, { force: true });
  writeFileSync(fresh, `${JSON.stringify(credentials, null, 2)}\n`, { mode: 0o600, flag: "wx" });
  renameSync(fresh, file);
}

export function removeCredentials(): void {
  rmSync(credentialsFile(), { force: true });
}

function credentialsFile(): string {
  return path.join(process.env.MITOS_CONFIG_DIR || path.join(os.homedir(), ".config/mitos"), "credentials.json");
}
