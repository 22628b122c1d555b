/** What each route and RPC asks of a key: one table, in which a route without a row cannot be registered. */

import type { Scope } from "@mitos/engine";
import type { sandbox as pb } from "@mitos/protocol/proto";

export interface Access {
  /** `open`: without a key. `any`: with any key. */
  readonly scope: Scope | "any" | "open";
  /** Counts as one of the streams that a key may have open at once. */
  readonly stream?: true;
}

const read = { scope: "read" } as const;
const execute = { scope: "execute" } as const;
const lifecycle = { scope: "lifecycle" } as const;
const admin = { scope: "admin" } as const;
const readStream = { scope: "read", stream: true } as const;
const lifecycleStream = { scope: "lifecycle", stream: true } as const;
const executeStream = { scope: "execute", stream: true } as const;

/** By method and path as they are registered; HEAD is as GET. */
export const routeAccess: Readonly<Record<string, Access>> = {
  // For orchestrators, which have no key. They tell nothing about sandboxes.
  "GET /healthz": { scope: "open" },
  "GET /readyz": { scope: "open" },
  "GET /v1/whoami": { scope: "any" },

  "GET /v1/health": read,
  "GET /v1/metering": read,
  // Names the sandboxes of all owners.
  "GET /metrics": admin,
  "GET /v1/templates": read,
  "GET /v1/templates/:id/events": readStream,
  "GET /v1/names/:name": read,
  "GET /v1/images": read,
  "GET /v1/usage/disk": read,
  "GET /v1/sandboxes": read,
  "GET /v1/sandboxes/:id": read,
  "GET /v1/sandboxes/:id/tree": read,

  "POST /v1/templates": lifecycle,
  "DELETE /v1/templates/:id": lifecycle,
  // With what the server knows of registries, and into any of them.
  "POST /v1/templates/:id/push": admin,
  "POST /v1/images": lifecycle,
  "GET /v1/contexts/:digest": lifecycle,
  "PUT /v1/contexts/:digest": lifecycleStream,
  // Of everybody's.
  "POST /v1/prune": admin,
  "POST /v1/fork": lifecycle,
  "POST /v1/sandboxes/:id/fork": lifecycle,
  "DELETE /v1/sandboxes/:id": lifecycle,
  "POST /v1/set_timeout": lifecycle,
  "POST /v1/pause": lifecycle,
  "POST /v1/resume": lifecycle,

  "GET /v1/sandboxes/:id/files": execute,
  "PUT /v1/sandboxes/:id/files": execute,
  "POST /v1/sandboxes/:id/files/rename": execute,
  "GET /v1/sandboxes/:id/console": execute,
  "GET /v1/sandboxes/:id/contexts": execute,
  "POST /v1/sandboxes/:id/contexts": execute,
  "POST /v1/sandboxes/:id/contexts/:context/restart": execute,
  "DELETE /v1/sandboxes/:id/contexts/:context": execute,
  "GET /v1/sandboxes/:id/processes": execute,
  "POST /v1/sandboxes/:id/processes": execute,
  "GET /v1/sandboxes/:id/processes/:pid/output": executeStream,
  "POST /v1/sandboxes/:id/processes/:pid/stdin": execute,
  "POST /v1/sandboxes/:id/processes/:pid/signal": execute,
  "POST /v1/sandboxes/:id/processes/:pid/resize": execute,

  "POST /v1/exec": executeStream,
  "POST /v1/exec/stream": executeStream,
  "POST /v1/run_code/stream": executeStream,
  "POST /v1/files/read": execute,
  "POST /v1/files/write": execute,
  "POST /v1/files/list": execute,
  "POST /v1/files/mkdir": execute,
  "POST /v1/files/remove": execute,
  "POST /v1/vitals": execute,
  "GET /v1/pty": executeStream,

  "POST /v1/preview": execute,
  "POST /v1/sandboxes/:id/forward": execute,

  "POST /v1/keys": admin,
  "GET /v1/keys": admin,
  "DELETE /v1/keys/:id": admin,
};

/** Every RPC of the service: the type knows when one is missing. */
export const rpcAccess = {
  exec: executeStream,
  execStream: executeStream,
  runCode: executeStream,
  runCodeStream: executeStream,
  readFile: executeStream,
  writeFile: execute,
  list: execute,
  stat: execute,
  mkdir: execute,
  remove: execute,
  archive: executeStream,
  upload: execute,
  watch: executeStream,
  processes: execute,
  signal: execute,
  vitals: executeStream,
  portForward: executeStream,
  fork: lifecycle,
  checkpoint: lifecycle,
  extendLifetime: lifecycle,
  budget: read,
} as const satisfies Readonly<Record<keyof typeof pb.Sandbox.method, Access>>;

/** A program over a WebSocket, whichever generation of clients asks for it. */
export const webSocketAccess: Access = executeStream;

/** A port of a sandbox below the API's own address. */
export const exposeAccess: Access = executeStream;

/** @throws when the table has no row: a route that nobody has thought about is not served */
export function accessOfRoute(method: string, url: string): Access {
  const name = `${method === "HEAD" ? "GET" : method} ${url}`;
  const access = Object.hasOwn(routeAccess, name) ? routeAccess[name] : undefined;
  if (!access) throw new Error(`${name} has no row in packages/server/src/auth/access.ts: say there which scope it needs`);
  return access;
}
