import { readFileSync } from "node:fs";
import { Backend } from "./backend.ts";
import { CreatedSandboxes } from "./created-sandboxes.ts";
import { startHttp } from "./http/server.ts";
import { help, type Options, parseOptions, type ServeOptions, UsageError } from "./options.ts";
import { createMcpServer } from "./server.ts";
import type { OpenSession } from "./session.ts";
import { serveOverStdio } from "./stdio.ts";
import { toolSet } from "./tools/index.ts";

/** @param args - without the interpreter and the script. Sets the exit code of the process: 1 = cannot start, 2 = wrong usage. */
export async function main(args: readonly string[]): Promise<void> {
  let options: Options;
  try {
    options = parseOptions(args, process.env);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`error: ${error.message}\nnext step: ${error.remedy}\n`);
    process.exitCode = 2;
    return;
  }
  if (options.show === "help") process.stdout.write(help);
  else if (options.show === "version") process.stdout.write(`mitos-mcp ${version} (node ${process.versions.node})\n`);
  else await serve(options);
}

const version = (JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { version: string }).version;

async function serve({ server, token, workspaces, ephemeral, http }: ServeOptions): Promise<void> {
  const backend = new Backend({ server, token });
  const tools = toolSet({ workspaces });
  const openSession: OpenSession = () => {
    const created = new CreatedSandboxes(backend);
    return {
      createServer: () => createMcpServer({ version, tools, backend, created }),
      end: async () => {
        if (ephemeral) await created.terminateAll();
      },
    };
  };
  const stop = stopSignal();
  const told = `server ${backend.url}, token ${backend.hasToken ? "set" : "unset"}`;
  if (!http) {
    log(`${version}, ${told}, stdio`);
    const session = openSession();
    await serveOverStdio({ createServer: session.createServer, input: process.stdin, output: process.stdout, signal: stop, onerror });
    await session.end();
    return;
  }
  let listening: Awaited<ReturnType<typeof startHttp>>;
  try {
    listening = await startHttp({ ...http, openSession, onerror });
  } catch (error) {
    process.stderr.write(`error: ${http.host}:${http.port} cannot be listened on\ncause: ${(error as Error).message}\n`);
    process.stderr.write("next step: choose another --addr, or end the program that has it\n");
    process.exitCode = 1;
    return;
  }
  log(`${version}, ${told}, ${listening.url}, client token ${http.token === undefined ? "unset" : "set"}`);
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  await listening.close();
}

/** Fires when the process is told to end. Told a second time, it ends at once. */
function stopSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(130);
      controller.abort(new Error(`told to end by ${name}`));
    });
  }
  return controller.signal;
}

/** To standard error, which clients show or keep: standard output belongs to the protocol. */
function log(line: string): void {
  process.stderr.write(`mitos-mcp ${line}\n`);
}

/** What the protocol's machinery had to put up with. Messages only: they hold no argument, result or key. */
function onerror(error: Error): void {
  log(`warning: ${error.message.slice(0, 300)}`);
}

if (import.meta.main) await main(process.argv.slice(2));
