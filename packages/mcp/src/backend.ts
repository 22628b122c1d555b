import { type Connection, HttpClient, resolveConnection, Sandbox, SandboxServer } from "@mitos/sdk";

export interface BackendOptions {
  /** Default: as for every SDK, `MITOS_BASE_URL`, then the local server. */
  server?: string | undefined;
  /** Default: as for every SDK, `MITOS_API_KEY`, then the saved key, then none. */
  token?: string | undefined;
}

/** The Mitos server in which the tools work. */
export class Backend {
  readonly url: string;
  readonly server: SandboxServer;
  readonly #token: string | undefined;
  readonly #http: HttpClient;

  constructor({ server, token }: BackendOptions) {
    const resolved = resolveConnection({ baseUrl: server, apiKey: token });
    this.#token = resolved.token;
    this.#http = new HttpClient(resolved.baseUrl, resolved.token);
    this.url = this.#http.baseUrl;
    this.server = SandboxServer.fromAuth(this.connection);
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
    return new Sandbox({ id, endpoint: this.url, http: this.#http });
  }
}
