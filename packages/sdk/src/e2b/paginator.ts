import type { Connection } from "../config.ts";
import { HttpClient } from "../http.ts";
import { Sandbox } from "../sandbox.ts";
import { SandboxServer } from "../server.ts";
import type { ServerSandbox } from "../types.ts";
import { InvalidArgumentError, isGone, SandboxError } from "./errors.ts";
import { type SandboxInfo, type SandboxState, toSandboxInfo } from "./info.ts";
import { connectionOf, type SandboxApiOpts, templateOf } from "./options.ts";
import { request } from "./request.ts";

/** Options of `Sandbox.list`. */
export interface SandboxListOpts extends Omit<SandboxApiOpts, "signal"> {
  query?:
    | {
        metadata?: Record<string, string> | undefined;
        /** Default: both. */
        state?: SandboxState[] | undefined;
        startedAfter?: Date | undefined;
        template?: string | undefined;
      }
    | undefined;
  /** By start. Default: `desc`. */
  order?: "asc" | "desc" | undefined;
  /** Of a page. Default: 100. */
  limit?: number | undefined;
  nextToken?: string | undefined;
}

const limitDefault = 100;

/** `while (paginator.hasNext) await paginator.nextItems()`. A page shows what there is when it is asked for. */
export class SandboxPaginator {
  readonly #opts: SandboxListOpts;
  #hasNext = true;
  #nextToken: string | undefined;

  constructor(opts: SandboxListOpts = {}) {
    const { limit = limitDefault } = opts;
    if (!Number.isInteger(limit) || limit < 1) throw new InvalidArgumentError(`limit must be a whole number of at least 1, not ${limit}`);
    this.#opts = opts;
    this.#nextToken = opts.nextToken;
  }

  get hasNext(): boolean {
    return this.#hasNext;
  }

  /** The last sandbox of the page: a list that begins there goes on behind it, also in another program. */
  get nextToken(): string | undefined {
    return this.#nextToken;
  }

  /** @throws SandboxError when there is no next page */
  async nextItems(opts?: SandboxApiOpts): Promise<SandboxInfo[]> {
    if (!this.#hasNext) throw new SandboxError("there are no more sandboxes to list; look at hasNext first");
    const { query = {}, order = "desc", limit = limitDefault, ...connection } = this.#opts;
    const effective = { ...connection, ...opts };
    const server = SandboxServer.fromAuth(connectionOf(effective));
    const rows = await request("sandbox", effective, () => rowsOf(server, query));
    const sorted = rows.filter((row) => matches(row, query)).sort((one, other) => compare(keyOf(one), keyOf(other), order));
    const after = this.#nextToken;
    const rest = after === undefined ? sorted : sorted.filter((row) => compare(keyOf(row), after, order) > 0);
    const page = rest.slice(0, limit);
    const infos = await request("sandbox", effective, () => detailsOf(page, connectionOf(effective)));
    this.#hasNext = rest.length > page.length;
    this.#nextToken = this.#hasNext ? keyOf(page.at(-1)!) : undefined;
    return infos;
  }
}

type Query = NonNullable<SandboxListOpts["query"]>;

/** A row does not tell the state, so each state is asked for. */
async function rowsOf(server: SandboxServer, { metadata, state = ["running", "paused"] }: Query): Promise<ServerSandbox[]> {
  const lists = await Promise.all([...new Set(state)].map((one) => server.listSandboxes({ state: one, metadata })));
  return [...new Map(lists.flat().map((row) => [row.id, row])).values()];
}

/** What a row does not tell. One that has ended meanwhile is left out. */
async function detailsOf(rows: readonly ServerSandbox[], connection: Connection): Promise<SandboxInfo[]> {
  const http = HttpClient.fromAuth(connection);
  const details = await Promise.all(
    rows.map(({ id }) =>
      new Sandbox({ id, endpoint: http.baseUrl, http }).info().catch((error: unknown) => {
        if (isGone(error)) return undefined;
        throw error;
      }),
    ),
  );
  return details.filter((row) => row !== undefined).map(toSandboxInfo);
}

function matches(row: ServerSandbox, { startedAfter, template }: Query): boolean {
  if (startedAfter && new Date(row.createdAt) < startedAfter) return false;
  return template === undefined || row.templateId === templateOf(template).template;
}

/** Unique, and in the order of the starts: ISO times sort as text. */
function keyOf({ createdAt, id }: ServerSandbox): string {
  return `${new Date(createdAt).toISOString()}_${id}`;
}

function compare(one: string, other: string, order: "asc" | "desc"): number {
  const ascending = one < other ? -1 : one > other ? 1 : 0;
  return order === "asc" ? ascending : -ascending;
}
