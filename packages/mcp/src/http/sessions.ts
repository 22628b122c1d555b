import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import { WebStandardStreamableHTTPServerTransport } from "@modelcontextprotocol/server";
import type { OpenSession, Session } from "../session.ts";
import { EventLog } from "./event-log.ts";

export interface SessionLimits {
  /** At the limit the session that has been idle for longest makes room for a new one. */
  readonly sessionsMax: number;
  /** A session without an open request or stream ends after this time. */
  readonly idleMs: number;
}

/** Idle is long: who comes back to a conversation after lunch should find its session. */
export const sessionLimits: SessionLimits = { sessionsMax: 256, idleMs: 8 * 60 * 60 * 1000 };

const sweepMs = 60_000;

interface Entry {
  readonly transport: WebStandardStreamableHTTPServerTransport;
  readonly session: Session;
  /** Requests and streams under way. */
  open: number;
  lastUsedAt: number;
}

/** The clients that have sent `initialize` over HTTP, by the id that each was given. */
export class Sessions {
  readonly #openSession: OpenSession;
  readonly #limits: SessionLimits;
  readonly #onerror: (error: Error) => void;
  readonly #entries = new Map<string, Entry>();
  readonly #ends = new Set<Promise<void>>();
  readonly #sweeper: NodeJS.Timeout;

  constructor(openSession: OpenSession, limits: SessionLimits, onerror: (error: Error) => void) {
    this.#openSession = openSession;
    this.#limits = limits;
    this.#onerror = onerror;
    this.#sweeper = setInterval(() => this.#endIdle(), Math.min(sweepMs, limits.idleMs)).unref();
  }

  /** @param response - what the session is in use for, until it closes */
  find(id: string, response: ServerResponse): WebStandardStreamableHTTPServerTransport | undefined {
    const entry = this.#entries.get(id);
    if (entry) this.#use(entry, response);
    return entry?.transport;
  }

  /** @returns the answer to `initialize`; undefined when there is no room for one more session */
  async initialize(request: Request, message: unknown, response: ServerResponse): Promise<Response | undefined> {
    if (this.#entries.size >= this.#limits.sessionsMax && !(await this.#makeRoom())) return undefined;
    const session = this.#openSession();
    const transport = new WebStandardStreamableHTTPServerTransport({
      sessionIdGenerator: () => randomUUID(),
      eventStore: new EventLog(),
      onsessioninitialized: (id) => {
        const entry = { transport, session, open: 0, lastUsedAt: performance.now() };
        this.#entries.set(id, entry);
        this.#use(entry, response);
      },
    });
    transport.onclose = () => this.#remove(transport.sessionId, session);
    transport.onerror = this.#onerror;
    await session.createServer().connect(transport);
    const answer = await transport.handleRequest(request, { parsedBody: message });
    if (transport.sessionId === undefined) await transport.close();
    return answer;
  }

  /** Ends them all. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    await Promise.all([...this.#entries.values()].map(({ transport }) => transport.close()));
    await Promise.all(this.#ends);
  }

  #use(entry: Entry, response: ServerResponse): void {
    entry.open++;
    entry.lastUsedAt = performance.now();
    response.once("close", () => {
      entry.open--;
      entry.lastUsedAt = performance.now();
    });
  }

  #remove(id: string | undefined, session: Session): void {
    if (id !== undefined) this.#entries.delete(id);
    const end = session.end().catch(this.#onerror);
    this.#ends.add(end);
    void end.finally(() => this.#ends.delete(end));
  }

  #endIdle(): void {
    const since = performance.now() - this.#limits.idleMs;
    for (const { transport, open, lastUsedAt } of this.#entries.values()) {
      if (open === 0 && lastUsedAt <= since) transport.close().catch(this.#onerror);
    }
  }

  async #makeRoom(): Promise<boolean> {
    const idle = [...this.#entries.values()].filter(({ open }) => open === 0).sort((one, other) => one.lastUsedAt - other.lastUsedAt);
    await idle[0]?.transport.close();
    return idle.length > 0;
  }
}
