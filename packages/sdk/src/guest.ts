/**
 * For programs that run **inside** a sandbox: who they are, and children of their own machine.
 *
 * They talk to the sandbox's agent over a unix socket; there is no server address, no key and no secret here. This file imports nothing of
 * the SDK, so that it can be brought into a sandbox alone.
 */

import { createConnection } from "node:net";

export interface Identity {
  readonly sandboxId: string;
  /** What it was made from. */
  readonly templateId?: string | undefined;
  /** Missing when it was made from a template. */
  readonly parentId?: string | undefined;
  readonly claim?: string | undefined;
  readonly pool?: string | undefined;
  readonly workspace?: string | undefined;
}

/** What this sandbox may ask for from inside. A child of it has none, unless whoever forked it from outside said so. */
export interface Budget {
  readonly maxForks: number;
  readonly maxCheckpoints: number;
  /** Counts children, also those that have ended. */
  readonly forksUsed: number;
}

/** What the agent tells a program about its sandbox. */
export interface GuestInfo {
  readonly identity: Identity;
  readonly budget: Budget;
}

/** How a program forks its own machine. */
export interface GuestForkOptions {
  /** Becomes `label` in the metadata of the children. At most 256 bytes. */
  readonly label?: string | undefined;
}

/** The sandbox's agent refused, or could not do it. */
export class GuestError extends Error {
  override readonly name: string = "GuestError";
  /** As in docs/errors.md: budget_exhausted, quota_exceeded, forbidden, secret_inheritance_denied, invalid_input, … */
  readonly code: string;
  readonly remediation: string;

  constructor(message: string, code: string, remediation: string = remedies[code] ?? "Read the message, and ask again if it may pass.") {
    super(message);
    this.code = code;
    this.remediation = remediation;
  }
}

/** There is no agent here: this program does not run in a sandbox, or not with its environment. */
export class GuestUnavailableError extends GuestError {
  override readonly name = "GuestUnavailableError";

  constructor(message: string) {
    super(message, "guest_unavailable", "Run it inside a Mitos sandbox, with MITOS_SOCKET as the sandbox sets it.");
  }
}

const remedies: Readonly<Record<string, string>> = {
  budget_exhausted: "Have whoever creates or forks this sandbox give it a larger fork budget (forkBudget).",
  quota_exceeded: "Terminate sandboxes of the same owner, or fork again later.",
  forbidden: "Have the sandbox forked from outside, with a key that is active.",
  secret_inheritance_denied: "A sandbox that was given secrets cannot fork itself; fork it from outside with inheritSecrets.",
  invalid_input: "Correct the value that the message names.",
};

const messageBytesMax = 1024 * 1024;
const forkCountMax = 100;

/** The agent's socket. @throws GuestUnavailableError outside a sandbox */
export function socketPath(): string {
  const path = process.env.MITOS_SOCKET;
  if (!path) throw new GuestUnavailableError("MITOS_SOCKET is not set: this program does not run in a Mitos sandbox");
  return path;
}

/** Opens nothing yet: every request is a connection of its own. @throws GuestUnavailableError outside a sandbox */
export function connect(path: string = socketPath()): GuestClient {
  return new GuestClient(path);
}

/** Asks the agent. @throws GuestUnavailableError outside a sandbox; GuestError */
export async function info(): Promise<GuestInfo> {
  return connect().info();
}

/** Asked anew each time: in a fork's child the answer is another. */
export async function identity(): Promise<Identity> {
  return connect().identity();
}

/**
 * Forks the machine that this program runs in. It returns in the parent **and in every child**: in the parent with the ids of the children, in a
 * child with none (`identity()` then tells its own id).
 *
 * @param n - 1 to what is left of the budget, 100 at most
 * @throws GuestError: budget_exhausted, quota_exceeded, … No child exists then.
 */
export async function fork(n = 1, options: GuestForkOptions = {}): Promise<string[]> {
  return connect().fork(n, options);
}

/** The agent of this sandbox. */
export class GuestClient {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  async info(): Promise<GuestInfo> {
    const { info } = await ask(this.path, { type: "info" });
    const { identity, budget } = membersOf(info);
    const who = membersOf(identity);
    const may = membersOf(budget);
    return {
      identity: {
        sandboxId: textOf(who.sandboxId) ?? "",
        templateId: textOf(who.templateId),
        parentId: textOf(who.parentId),
        claim: textOf(who.claim),
        pool: textOf(who.pool),
        workspace: textOf(who.workspace),
      },
      budget: {
        maxForks: Number(may.maxForks ?? 0),
        maxCheckpoints: Number(may.maxCheckpoints ?? 0),
        forksUsed: Number(may.forksUsed ?? 0),
      },
    };
  }

  async identity(): Promise<Identity> {
    return (await this.info()).identity;
  }

  /** @see fork */
  async fork(n = 1, { label = "" }: GuestForkOptions = {}): Promise<string[]> {
    if (!Number.isInteger(n) || n < 1 || n > forkCountMax) {
      throw new GuestError(`n must be a whole number from 1 to ${forkCountMax}, not ${n}`, "invalid_input");
    }
    const { children } = membersOf((await ask(this.path, { type: "fork", fork: { n, label } })).fork);
    return Array.isArray(children) ? children.map(String) : [];
  }
}

// ---------------------------------------------------------------------------------------------------- sub-agents

/** One child that was made for a sub-agent. */
export interface SubagentHandle {
  readonly sandboxId: string;
  readonly label: string;
  readonly onMitos: true;
}

/** The children, or why there are none. */
export interface SubagentResult {
  /** False when this program does not run in a sandbox: nothing was forked, and the caller does the work where it is. */
  readonly onMitos: boolean;
  /** None in a child itself. */
  readonly children: readonly SubagentHandle[];
  readonly first: SubagentHandle | undefined;
  /** Why there are none off Mitos; empty on it. */
  readonly reason: string;
}

/** Looks at the environment only. */
export function isOnMitos(): boolean {
  return typeof process !== "undefined" && Boolean(process.env?.MITOS_SOCKET);
}

/** Null outside a sandbox. @throws GuestError when there is an agent and it does not answer */
export async function currentSandbox(): Promise<Identity | null> {
  return isOnMitos() ? identity() : null;
}

/**
 * Forks this sandbox for sub-agents, where there is one: each goes on from here with everything that the parent knows. Off Mitos it does nothing and does
 * not throw.
 *
 * @throws GuestError when a fork was asked for and refused
 */
export async function spawnSubagent(n = 1, { label = "" }: GuestForkOptions = {}): Promise<SubagentResult> {
  if (!isOnMitos()) {
    const reason = "MITOS_SOCKET is not set: this program does not run in a Mitos sandbox";
    return { onMitos: false, children: [], first: undefined, reason };
  }
  const children = (await fork(n, { label })).map((sandboxId) => ({ sandboxId, label, onMitos: true }) as const);
  return { onMitos: true, children, first: children[0], reason: "" };
}

// ---------------------------------------------------------------------------------------------------- the socket

type Members = Readonly<Record<string, unknown>>;

/** One request, one line back. @throws GuestUnavailableError without an agent, GuestError for what it refuses */
async function ask(path: string, request: Members): Promise<Members> {
  const line = await exchange(path, `${JSON.stringify(request)}\n`);
  const answer = parse(line);
  if (!answer) throw new GuestError("the sandbox's agent sent something that is not one JSON object", "invalid_response");
  if (answer.ok !== true) {
    throw new GuestError(textOf(answer.error) ?? "the sandbox's agent refused without a reason", textOf(answer.code) ?? "refused");
  }
  return answer;
}

function exchange(path: string, line: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let received = "";
    let connected = false;
    const socket = createConnection(path);
    const fail = (error: GuestError) => {
      socket.destroy();
      reject(error);
    };
    socket.setEncoding("utf8");
    socket.once("connect", () => {
      connected = true;
      socket.write(line);
    });
    socket.on("data", (text: string) => {
      received += text;
      const end = received.indexOf("\n");
      if (end >= 0) {
        socket.destroy();
        resolve(received.slice(0, end));
      } else if (received.length > messageBytesMax) {
        fail(new GuestError("the sandbox's agent sent more than 1 MiB", "invalid_response"));
      }
    });
    socket.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code ?? error.message;
      if (connected) fail(new GuestError(`the connection to the sandbox's agent broke (${why})`, "unavailable"));
      else fail(new GuestUnavailableError(`nothing answers at ${path} (${why})`));
    });
    socket.once("close", () => fail(new GuestError("the sandbox's agent hung up without an answer", "unavailable")));
  });
}

function parse(line: string): Members | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Members) : undefined;
  } catch {
    return undefined;
  }
}

function membersOf(value: unknown): Members {
  return typeof value === "object" && value !== null ? (value as Members) : {};
}

/** Undefined for what is missing or empty. */
function textOf(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}
