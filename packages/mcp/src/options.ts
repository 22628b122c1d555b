import { parseArgs } from "node:util";
import { isLoopback } from "./http/guard.ts";

/** What the command line and the environment ask for. */
export type Options = { readonly show: "help" } | { readonly show: "version" } | ({ readonly show?: undefined } & ServeOptions);

export interface ServeOptions {
  readonly server: string | undefined;
  readonly token: string | undefined;
  readonly workspaces: boolean;
  /** End the sandboxes of a session with it. */
  readonly ephemeral: boolean;
  /** Undefined = stdio. */
  readonly http: HttpListen | undefined;
}

export interface HttpListen {
  readonly host: string;
  readonly port: number;
  readonly token: string | undefined;
}

/** What the user got wrong; printed without a stack, exit code 2. */
export class UsageError extends Error {
  readonly remedy: string;

  constructor(message: string, remedy: string) {
    super(message);
    this.remedy = remedy;
  }
}

const addressDefault = "127.0.0.1:8090";
const tokenCharsMin = 16;

export const help = `Usage: mitos-mcp [options]

Gives an MCP client sandboxes of a Mitos server. Speaks over standard input and output unless --http is given.

  --server <url>             the Mitos server (default: MITOS_BASE_URL, else http://127.0.0.1:8080)
  --token <key>              key for it (default: MITOS_API_KEY, else the saved one); better in the environment, which others do not see
  --ephemeral                terminate the sandboxes that a session has made when it ends
  --enable-workspace-tools   list the workspace tools too, which answer tool_not_dispatchable
  --http                     serve streamable HTTP instead
  --addr <host:port>         where (default: ${addressDefault}); port 0 takes any free one, other addresses than loopback need --http-token
  --http-token <token>       what its clients must bring as a bearer token (default: MITOS_MCP_TOKEN)
  --help, --version
`;

/** @throws UsageError */
export function parseOptions(args: readonly string[], env: NodeJS.ProcessEnv): Options {
  const flags = parseFlags(args);
  if (flags.help) return { show: "help" };
  if (flags.version) return { show: "version" };
  const server = flags.server || env.MITOS_BASE_URL || undefined;
  requireServer(server);
  if (!flags.http && (flags.addr !== undefined || flags["http-token"] !== undefined)) {
    throw new UsageError("--addr and --http-token are for --http", "Add --http, or leave them out.");
  }
  return {
    server,
    token: flags.token,
    workspaces: flags["enable-workspace-tools"] ?? false,
    ephemeral: flags.ephemeral ?? false,
    http: flags.http ? parseListen(flags.addr ?? addressDefault, flags["http-token"] || env.MITOS_MCP_TOKEN || undefined) : undefined,
  };
}

function parseFlags(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        server: { type: "string" },
        token: { type: "string" },
        ephemeral: { type: "boolean" },
        "enable-workspace-tools": { type: "boolean" },
        http: { type: "boolean" },
        addr: { type: "string" },
        "http-token": { type: "string" },
        help: { type: "boolean", short: "h" },
        version: { type: "boolean", short: "v" },
      },
    }).values;
  } catch (error) {
    throw new UsageError((error as Error).message.split(". ", 1)[0]!, "Run mitos-mcp --help for what there is.");
  }
}

function requireServer(server: string | undefined): void {
  if (server === undefined) return;
  const url = URL.parse(/^[a-z][a-z0-9+.-]*:\/\//i.test(server) ? server : `http://${server}`);
  if (url && /^https?:$/.test(url.protocol) && !url.username && !url.password) return;
  // The value is not repeated: it may hold a password.
  throw new UsageError(
    "the address of the server is not valid",
    "Give --server (or MITOS_BASE_URL) as http://host:port, without a user name.",
  );
}

function parseListen(addr: string, token: string | undefined): HttpListen {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})$/.exec(addr);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new UsageError(`--addr ${addr} is not valid`, `Give host:port, for example ${addressDefault}.`);
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) {
    throw new UsageError("the token for clients has characters that no header can carry", `Use ${newToken}.`);
  }
  if (token !== undefined && token.length < tokenCharsMin) {
    throw new UsageError(`the token for clients is shorter than ${tokenCharsMin} characters`, `Use ${newToken}.`);
  }
  if (token === undefined && !isLoopback(host)) {
    throw new UsageError(
      `--addr ${addr} would be reachable from other machines, and there is no token for clients`,
      `Listen on 127.0.0.1, [::1] or localhost, or set MITOS_MCP_TOKEN to ${newToken}.`,
    );
  }
  return { host: host || "0.0.0.0", port, token };
}

const newToken = "the output of `openssl rand -hex 32`";
