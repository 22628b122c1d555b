import { spawn } from "node:child_process";
import { open, readFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { connectShim, type JsonObject, type ShimConnection } from "../../link/transport.ts";

const shimReadyTimeoutMs = 10_000;
const shimReadyBytesMax = 16 * 1024;

/** The two connections to a machine's shim. */
export interface ShimConnections {
  /** Carries the machine's frames. */
  readonly link: ShimConnection;
  /** Requests to the shim and its events, which must get through whatever back-pressure the link is under. */
  readonly control: ShimConnection;
}

/** @param connections - gets each as soon as it is there, for whoever has to close them when the other fails */
export async function connectBoth(dir: string, connections: ShimConnection[]): Promise<ShimConnections> {
  const [link, control] = await Promise.all(
    ["shim.sock", "control.sock"].map(async (name) => {
      const connection = await connectShim(path.join(dir, name));
      connections.push(connection);
      return connection;
    }),
  );
  return { link: link!, control: control! };
}

export interface ShimProgram {
  /** The guest binary, which is also the shim. */
  readonly guestPath: string;
  /** Without root, each shim and all that it starts lives in a user namespace of its own. */
  readonly userNamespace: boolean;
}

/** @param dir - made before, empty, private */
export async function startShim({ guestPath, userNamespace }: ShimProgram, dir: string): Promise<void> {
  const args = ["shim", "--dir", dir, ...(userNamespace ? ["--user-namespace"] : [])];
  // What it starts needs nothing of our environment, and a machine's host processes should not carry our secrets in theirs.
  const child = spawn(guestPath, args, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    cwd: "/",
  });
  try {
    await new Promise<void>((resolve, reject) => {
      let out = "";
      let errors = "";
      const timer = setTimeout(() => reject(failed(`it was not ready after ${shimReadyTimeoutMs} ms`)), shimReadyTimeoutMs);
      const failed = (text: string) => {
        clearTimeout(timer);
        return new MitosError("internal", { cause: `a machine's shim did not start: ${text.slice(0, 1024)}` });
      };
      child.stdout.on("data", (chunk: Buffer) => {
        if (out.length < shimReadyBytesMax) out += chunk.toString("latin1");
        if (!out.startsWith("ready\n")) return;
        clearTimeout(timer);
        resolve();
      });
      child.stderr.on("data", (chunk: Buffer) => {
        if (errors.length < shimReadyBytesMax) errors += chunk.toString("utf8");
      });
      child.on("error", (error) => reject(failed(error.message)));
      // The shim holds stdout until it is ready, so the end of both without `ready` is a failure.
      child.on("close", (code) => reject(failed(errors.trim() || `it ended with ${code}`)));
    });
  } finally {
    child.stdout.destroy();
    child.stderr.destroy();
  }
}

/** Runs a host command in the shim's surroundings. @throws MitosError with the command's own last words */
export async function runCommand(
  control: ShimConnection,
  doing: string,
  argv: readonly string[],
  timeoutMs: number,
  stdio: "null" | "link" = "null",
): Promise<void> {
  const reply = await control.request("run", { argv, stdio, timeout_ms: timeoutMs });
  if (reply.exit_code === 0 && reply.timed_out !== true) return;
  throw new MitosError("internal", { cause: `could not ${doing}: ${lastWords(reply)}` });
}

function lastWords(reply: JsonObject): string {
  if (reply.timed_out === true) return "it took too long";
  const said = `${String(reply.stdout ?? "")}\n${String(reply.stderr ?? "")}`;
  // Where it stood in its own code then, as newer builds of runsc add it, helps nobody.
  const [text = ""] = said.split(/^goroutine \d+ \[/m, 1);
  const last = text.trim().split("\n").at(-1)?.slice(-1024);
  return last || `exit code ${String(reply.exit_code)}, signal ${String(reply.signal)}`;
}

/** @throws MitosError */
export async function readPid(file: string): Promise<number> {
  const pid = Number((await readFile(file, "utf8")).trim());
  if (!Number.isInteger(pid) || pid <= 1) throw new MitosError("internal", { cause: `${file} holds no process id` });
  return pid;
}

/** How the machine ended, when its shim has said so. */
export async function readExit(dir: string): Promise<JsonObject | undefined> {
  const file = await open(path.join(dir, "exit.json")).catch(() => undefined);
  if (!file) return undefined;
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(16 * 1024));
    const value: unknown = JSON.parse(buffer.toString("utf8", 0, bytesRead));
    return typeof value === "object" && value !== null ? (value as JsonObject) : undefined;
  } catch {
    return undefined;
  } finally {
    await file.close();
  }
}
