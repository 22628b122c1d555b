import { type Connection, resolveConnection, type Sandbox, SandboxServer } from "@mitos/sdk";

export interface BackendOptions {
  /** Default: as for every SDK, `MITOS_BASE_URL`, then the local server. */
  server?: string | undefined;
  /** Default: as for every SDK, `MITOS_API_KEY`, then the saved key, then none. */
  token?: string | undefined;
}

/** The Mitos server in which the tools work. */
export class Backend {
  readonly server: SandboxServer;
  readonly #token: string | undefined;

  constructor({ server, token }: BackendOptions) {
    const connection = resolveConnection({ baseUrl: server, apiKey: token });
    this.#token = connection.token;
    this.server = new SandboxServer(connection.baseUrl, connection.token);
  }

  get url(): string {
    return this.server.url;
  }

  get hasToken(): boolean {
    return this.#token !== undefined;
  }

  /** For the functions of the SDK that make their own connection. */
  get connection(): Connection {
    return { baseUrl: this.url, apiKey: this.#token };
  }

  /** A handle, without asking whether the sandbox exists: the first call on it tells. */
  sandbox(id: string): Sandbox {
    return this.server.handle(id);
  }
}
