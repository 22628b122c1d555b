import { removePrivate, savePrivate } from "./private-files.ts";

/** What `auth login` keeps for later commands and for every SDK. */
export interface Credentials {
  readonly token: string;
  readonly email: string;
  readonly default_org: string;
}

const name = "credentials.json";

export function saveCredentials(credentials: Credentials): void {
  savePrivate(name, credentials);
}

export function removeCredentials(): void {
  removePrivate(name);
}
