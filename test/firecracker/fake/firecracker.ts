/**
 * A strict stand-in for Firecracker, for machines without KVM: a process with its command line, its API and its vsock, which refuses what Firecracker
 * refuses. It runs no guest; `guest.ts` is as much of one as the API shows.
 *
 * Environment: FAKE_CALLS, a file to which every call and its answer is appended; FAKE_JAIL, FAKE_UID as `jailer.ts` gives them.
 */
import { appendFileSync, existsSync } from "node:fs";
import { createServer, type IncomingMessage } from "node:http";
import { parse, Refused } from "./api.ts";
import { Files } from "./files.ts";
import { Fatal, Vmm } from "./vmm.ts";

const version = "1.15.0";
/** Of Firecracker's HTTP server. */
const bodyBytesMax = 51_200;

const { id, socket } = readArguments(process.argv.slice(2));
const { FAKE_CALLS: log, FAKE_JAIL: root, FAKE_UID: uid } = process.env;
const vmm = new Vmm(new Files(root ? { root, uid: Number(uid) } : undefined));
if (existsSync(socket)) fail(`Failed to open the API socket at: ${socket}. Check that it is not already used.`);

createServer(async (request, response) => {
  const { method = "", url = "" } = request;
  const body = await bodyOf(request);
  let answer: { status: number; fault?: string };
  let isFatal = false;
  try {
    requireHttp(request, body);
    vmm.apply(parse(method, url, body));
    answer = { status: 204 };
  } catch (error) {
    if (!(error instanceof Refused)) process.stderr.write(`${String((error as Error).stack)}\n`);
    answer = { status: 400, fault: (error as Error).message };
    isFatal = error instanceof Fatal || !(error instanceof Refused);
  }
  if (log) appendFileSync(log, `${JSON.stringify({ id, method, path: url, body: body && tryParse(body), ...answer })}\n`);
  response.writeHead(answer.status, { "content-type": "application/json" });
  response.end(answer.fault === undefined ? undefined : JSON.stringify({ fault_message: answer.fault }), () => {
    if (isFatal) process.exit(1);
  });
}).listen(socket);

function readArguments(args: readonly string[]): { id: string; socket: string } {
  if (args[0] === "--version") {
    process.stdout.write(`Firecracker v${version}\n`);
    process.exit(0);
  }
  const given = new Map<string, string>();
  // What the jailer adds: times, which mean nothing here.
  const known = ["--id", "--api-sock", "--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us"];
  for (let at = 0; at < args.length; at += 2) {
    const [name, value] = [args[at]!, args[at + 1]];
    if (!known.includes(name)) fail(`Found argument '${name}' which wasn't expected, or isn't valid in this context.`);
    if (value === undefined) fail(`The argument '${name}' requires a value, but none was supplied.`);
    if (given.has(name)) fail(`The argument '${name}' was provided more than once.`);
    given.set(name, value!);
  }
  const id = given.get("--id") ?? "anonymous-instance";
  if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) fail(`Invalid instance ID: ${id}`);
  return { id, socket: given.get("--api-sock") ?? "/run/firecracker.socket" };
}

/** What its HTTP server takes: a body of known length, in JSON. */
function requireHttp(request: IncomingMessage, body: string): void {
  if (request.headers["transfer-encoding"] !== undefined) throw new Refused("Unsupported header: Transfer-Encoding");
  if (Buffer.byteLength(body) > bodyBytesMax) throw new Refused("The request's body is too large");
  const type = request.headers["content-type"];
  if (type !== undefined && type !== "application/json" && type !== "text/plain") throw new Refused(`Unsupported value: ${type}`);
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString("utf8");
}

function tryParse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function fail(message: string): never {
  process.stderr.write(`Error: ${message}\n`);
  process.exit(153);
}
