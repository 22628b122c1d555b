/** The 21 RPCs of `sandbox.v1.Sandbox`, each by its name in the audit log. */

import type { ServiceImpl } from "@connectrpc/connect";
import { MitosError } from "@mitos/protocol";
import type { sandbox as pb } from "@mitos/protocol/proto";
import type { ServerContext } from "../context.ts";
import { streaming, unary } from "./call.ts";
import { exec, execStream } from "./exec.ts";
import { archive, list, mkdir, readFile, remove, stat, upload, watch, writeFile } from "./files.ts";
import { portForward, processes, signal, vitals } from "./processes.ts";
import { runCode, runCodeStream } from "./run-code.ts";

export function sandboxService(context: ServerContext) {
  return {
    exec: streaming(context, "exec", exec),
    execStream: streaming(context, "exec", execStream),
    runCode: streaming(context, "run_code", runCode),
    runCodeStream: streaming(context, "run_code", runCodeStream),
    readFile: streaming(context, "read_file", readFile),
    writeFile: unary(context, "write_file", writeFile),
    list: unary(context, "list_dir", list),
    stat: unary(context, "stat", stat),
    mkdir: unary(context, "mkdir", mkdir),
    remove: unary(context, "remove", remove),
    archive: streaming(context, "archive", archive),
    upload: unary(context, "upload", upload),
    watch: streaming(context, "watch", watch),
    processes: unary(context, "processes", processes),
    signal: unary(context, "signal", signal),
    vitals: streaming(context, "vitals", vitals),
    portForward: streaming(context, "port_forward", portForward),
    fork: unary(context, "fork", () => refuse("Fork", "POST /v1/sandboxes/{id}/fork")),
    checkpoint: unary(context, "checkpoint", () => refuse("Checkpoint", "POST /v1/pause")),
    extendLifetime: unary(context, "extendlifetime", () => refuse("ExtendLifetime", "POST /v1/set_timeout")),
    budget: unary(context, "budget", () => refuse("Budget", "GET /v1/sandboxes/{id}")),
  } satisfies ServiceImpl<typeof pb.Sandbox>;
}

/** What a program outside a sandbox asks of it has a route of its own. */
async function refuse(rpc: string, route: string): Promise<never> {
  throw new MitosError("not_supported", { message: `${rpc} is not served here`, cause: `use ${route}`, remediation: `Use ${route}.` });
}
