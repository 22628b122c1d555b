/**
 * What programs for E2B usually do, by the topics of its documentation. With the import below they are checked against E2B's own types; the
 * test beside this file changes that one import, checks again, and runs them on a Mitos server.
 */

import type { CommandHandle, Execution, Result, SandboxInfo } from "@e2b/code-interpreter";
import {
  ALL_TRAFFIC,
  CommandExitError,
  E2B,
  FileNotFoundError,
  FilesystemEventType,
  FileType,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  SandboxNotFoundError,
  TimeoutError,
} from "@e2b/code-interpreter";

export async function lifecycle() {
  const sandbox = await Sandbox.create({ timeoutMs: 60_000, metadata: { userId: "123" }, envs: { GREETING: "hello" } });
  try {
    const before: SandboxInfo = await sandbox.getInfo();
    await sandbox.setTimeout(120_000);
    const after = await Sandbox.getInfo(sandbox.sandboxId);
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 10_000 });
    const { stdout } = await again.commands.run("echo $GREETING");
    return {
      metadata: before.metadata,
      state: before.state,
      longer: after.endAt > before.endAt,
      notShortened: (await again.getInfo()).endAt.getTime() === after.endAt.getTime(),
      started: before.startedAt instanceof Date,
      greeting: stdout.trim(),
      running: await sandbox.isRunning(),
    };
  } finally {
    await sandbox.kill();
  }
}

export async function persistence() {
  const sandbox = await Sandbox.create();
  await sandbox.runCode("counter = 41");
  await sandbox.files.write("state.txt", "kept");
  const paused = await sandbox.pause();
  const pausedAgain = await Sandbox.pause(sandbox.sandboxId);
  const isRunning = await sandbox.isRunning();
  const resumed = await Sandbox.connect(sandbox.sandboxId);
  const execution = await resumed.runCode("counter + 1");
  const kept = await resumed.files.read("state.txt");
  const killed = await Sandbox.kill(sandbox.sandboxId);
  const killedAgain = await sandbox.kill();
  return { paused, pausedAgain, isRunning, text: execution.text, kept, killed, killedAgain };
}

export async function listing() {
  const made = [
    await Sandbox.create({ metadata: { suite: "listing" } }),
    await Sandbox.create({ metadata: { suite: "listing" } }),
    await Sandbox.create({ metadata: { suite: "other" } }),
  ];
  try {
    await made[0]!.pause();
    const paginator = Sandbox.list({ query: { metadata: { suite: "listing" } }, limit: 1 });
    const pages: string[][] = [];
    while (paginator.hasNext) pages.push((await paginator.nextItems()).map((info) => info.sandboxId));
    const paused = await Sandbox.list({ query: { state: ["paused"], metadata: { suite: "listing" } } }).nextItems();
    const first = Sandbox.list({ query: { metadata: { suite: "listing" } }, limit: 1, order: "asc" });
    const [oldest] = await first.nextItems();
    const rest = await Sandbox.list({ query: { metadata: { suite: "listing" } }, order: "asc", nextToken: first.nextToken! }).nextItems();
    const index = (id: string) => made.findIndex((sandbox) => sandbox.sandboxId === id);
    return {
      pages: pages.map((page) => page.map(index)),
      paused: paused.map((info) => index(info.sandboxId)),
      oldest: index(oldest!.sandboxId),
      rest: rest.map((info) => index(info.sandboxId)),
    };
  } finally {
    await Promise.all(made.map((sandbox) => sandbox.kill()));
  }
}

export async function commands(sandbox: Sandbox) {
  const lines: string[] = [];
  const result = await sandbox.commands.run("echo out; echo err >&2", {
    onStdout: (data) => void lines.push(`out:${data}`),
    onStderr: async (data) => void lines.push(`err:${data}`),
  });
  const inFolder = await sandbox.commands.run('echo "$PWD $NAME"', { cwd: "/tmp", envs: { NAME: "value" } });
  let exitCode = 0;
  try {
    await sandbox.commands.run("echo before; exit 7");
  } catch (error) {
    if (!(error instanceof CommandExitError)) throw error;
    exitCode = error.exitCode;
    lines.push(error.stdout);
  }
  const timedOut = await sandbox.commands.run("sleep 30", { timeoutMs: 1_000 }).catch((error: unknown) => error instanceof TimeoutError);
  return {
    exitCode: result.exitCode,
    stdout: result.stdout,
    stderr: result.stderr,
    lines: lines.sort(),
    folder: inFolder.stdout,
    failed: exitCode,
    timedOut,
  };
}

export async function backgroundCommands(sandbox: Sandbox) {
  const output: string[] = [];
  const command: CommandHandle = await sandbox.commands.run('while read line; do echo "got $line"; done; exit 3', {
    background: true,
    stdin: true,
    timeoutMs: 0,
    onStdout: (data) => void output.push(data),
  });
  const listed = (await sandbox.commands.list()).find((info) => info.pid === command.pid);
  await sandbox.commands.sendStdin(command.pid, "one\n");
  await command.sendStdin(new TextEncoder().encode("two\n"));
  await command.closeStdin();
  const ended = await command.wait().catch((error: unknown) => (error instanceof CommandExitError ? error.exitCode : error));

  const forever = await sandbox.commands.run("sleep 1000", { background: true });
  const same = await sandbox.commands.connect(forever.pid);
  const killed = await same.kill();
  const waited = await forever.wait().catch((error: unknown) => error instanceof CommandExitError);
  const killedAgain = await sandbox.commands.kill(forever.pid);
  return {
    cmd: listed?.cmd,
    last: listed?.args.at(-1),
    output: output.join(""),
    stdout: command.stdout,
    ended,
    exitCode: command.exitCode,
    killed,
    waited,
    killedAgain,
  };
}

export async function files(sandbox: Sandbox) {
  const info = await sandbox.files.write("/home/user/project/a.txt", "text");
  const many = await sandbox.files.write([
    { path: "project/b.bin", data: new Uint8Array([0, 1, 255]).buffer },
    { path: "project/deep/c.txt", data: new Blob(["blob"]) },
    { path: "project/d.txt", data: new Response("stream").body! },
  ]);
  const text = await sandbox.files.read("project/a.txt");
  const bytes = await sandbox.files.read("project/b.bin", { format: "bytes" });
  const blob = await sandbox.files.read("project/deep/c.txt", { format: "blob" });
  const stream = await sandbox.files.read("project/d.txt", { format: "stream" });
  const streamed = await new Response(stream).text();
  const list = await sandbox.files.list("/home/user/project");
  const deep = await sandbox.files.list("/home/user/project", { depth: 2 });
  const created = await sandbox.files.makeDir("project/new");
  const createdAgain = await sandbox.files.makeDir("project/new");
  const entry = await sandbox.files.getInfo("project/a.txt");
  await sandbox.files.remove("project/a.txt");
  const exists = await sandbox.files.exists("project/a.txt");
  const missing = await sandbox.files
    .read("project/a.txt")
    .catch((error: unknown) => [error instanceof FileNotFoundError, error instanceof NotFoundError, error instanceof SandboxError]);
  return {
    info,
    many: many.map(({ path }) => path),
    text,
    bytes: [...bytes],
    blob: await blob.text(),
    streamed,
    list: list.map(({ name, type }) => [name, type === FileType.DIR]),
    deep: deep.map(({ path }) => path),
    created,
    createdAgain,
    entry: { type: entry.type, size: entry.size, mode: entry.mode, permissions: entry.permissions, owner: entry.owner },
    exists,
    missing,
  };
}

export async function renaming(sandbox: Sandbox) {
  await sandbox.files.write("old.txt", "moved");
  const entry = await sandbox.files.rename("old.txt", "renamed/new.txt");
  return {
    path: entry.path,
    type: entry.type,
    exists: await sandbox.files.exists("old.txt"),
    text: await sandbox.files.read("renamed/new.txt"),
  };
}

export async function watching(sandbox: Sandbox) {
  await sandbox.files.makeDir("/home/user/watched/below");
  const events: string[] = [];
  const { promise: sawAll, resolve } = Promise.withResolvers<void>();
  const { promise: exit, resolve: exited } = Promise.withResolvers<Error | undefined>();
  const handle = await sandbox.files.watchDir(
    "/home/user/watched",
    async (event) => {
      events.push(`${event.type} ${event.name}`);
      if (event.type === FilesystemEventType.REMOVE) resolve();
    },
    { recursive: true, onExit: (error) => exited(error) },
  );
  await sandbox.files.write("/home/user/watched/below/f", "x");
  await sandbox.files.remove("/home/user/watched/below/f");
  await sawAll;
  await handle.stop();
  return { events: [...new Set(events)], exit: (await exit) === undefined };
}

export async function terminals(sandbox: Sandbox) {
  let seen = "";
  let changed = () => {};
  const until = (text: RegExp) =>
    new Promise<void>((resolve) => {
      changed = () => text.test(seen) && resolve();
      changed();
    });
  const decoder = new TextDecoder();
  const onData = (data: Uint8Array) => {
    seen += decoder.decode(data);
    changed();
  };
  const terminal = await sandbox.pty.create({ cols: 91, rows: 31, onData, envs: { WHO: "me" }, cwd: "/tmp", timeoutMs: 0 });
  const type = (text: string) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(text));
  await type('stty size; echo "[$WHO $PWD]"\n');
  // With the prompt after it: before it shows one, a shell sets the size that it has read, and would undo a change.
  await until(/\[me \/tmp\].*[$#] $/s);
  const size = seen.includes("31 91");
  await sandbox.pty.resize(terminal.pid, { cols: 120, rows: 40 });
  await terminal.disconnect();
  const again = await sandbox.pty.connect(terminal.pid, { onData });
  await type("stty size\n");
  await until(/40 120/);
  const killed = await sandbox.pty.kill(terminal.pid);
  await again.wait().catch(() => undefined);
  return { size, killed, killedAgain: await sandbox.pty.kill(terminal.pid) };
}

export async function code(sandbox: Sandbox) {
  const printed: string[] = [];
  const results: Result[] = [];
  const errors: string[] = [];
  await sandbox.runCode("x = 1");
  const execution: Execution = await sandbox.runCode("import sys; print('hi'); print('no', file=sys.stderr); x += 1; x", {
    onStdout: (message) => printed.push(`${message.error} ${message.line}`),
    onStderr: async (message) => printed.push(`${message.error} ${message}`),
    onResult: (result) => results.push(result),
  });
  const failed = await sandbox.runCode("1 / 0", { onError: (error) => errors.push(error.name) });
  const html = await sandbox.runCode("class Page:\n    def _repr_html_(self): return '<b>x</b>'\nPage()");
  const withEnvs = await sandbox.runCode("import os; os.environ['ONLY_HERE']", { envs: { ONLY_HERE: 'it\'s "here"' } });
  const withoutEnvs = await sandbox.runCode("os.environ.get('ONLY_HERE')");
  const javascript = await sandbox.runCode("[1, 2, 3].map((n) => n * 2)", { language: "javascript" });
  const bash = await sandbox.runCode("echo from bash", { language: "bash" });
  const late = await sandbox.runCode("while True: pass", { timeoutMs: 1_000 }).catch((error: unknown) => error instanceof TimeoutError);
  return {
    text: execution.text,
    logs: execution.logs,
    printed: printed.sort(),
    results: results.map((result) => [result.text, result.isMainResult]),
    error: [failed.error?.name, failed.error?.value, failed.error?.traceback.includes("ZeroDivisionError")],
    errors,
    html: [html.results[0]?.html, html.results[0]?.formats()],
    withEnvs: withEnvs.text,
    none: withoutEnvs.results.length,
    javascript: javascript.text,
    bash: bash.logs.stdout.join(""),
    late,
    kept: (await sandbox.runCode("x")).text,
  };
}

export async function contexts(sandbox: Sandbox) {
  const usual = await sandbox.createCodeContext();
  await sandbox.removeCodeContext(usual);
  const context = await sandbox.createCodeContext({ cwd: "/tmp", language: "python" });
  await sandbox.runCode("where = 'context'", { context });
  const inside = await sandbox.runCode("import os; (where, os.getcwd())", { context });
  const outside = await sandbox.runCode("where");
  const listed = (await sandbox.listCodeContexts()).some(({ id }) => id === context.id);
  await sandbox.restartCodeContext(context);
  const restarted = await sandbox.runCode("where", { context });
  await sandbox.removeCodeContext(context.id);
  const left = (await sandbox.listCodeContexts()).some(({ id }) => id === context.id);
  return {
    language: usual.language,
    cwd: usual.cwd,
    elsewhere: context.cwd,
    inside: inside.text,
    outside: outside.error?.name,
    listed,
    restarted: restarted.error?.name,
    left,
  };
}

export async function forks() {
  const sandbox = await Sandbox.create();
  await sandbox.runCode("state = 'shared'");
  const forked = await sandbox.fork({ count: 2, timeoutMs: 60_000 });
  const children = forked.filter((child) => child instanceof Sandbox);
  const states = await Promise.all(children.map(async (child) => (await child.runCode("state")).text));
  const [one] = await Sandbox.fork(sandbox.sandboxId);
  const alive = one instanceof Sandbox && (await one.isRunning());
  await Promise.all([sandbox, ...children, ...(one instanceof Sandbox ? [one] : [])].map((each) => each.kill()));
  return { states, alive };
}

export async function internet() {
  const closed = await Sandbox.create({ allowInternetAccess: false });
  const listed = await Sandbox.create({ network: { allowOut: ["example.com"], denyOut: [ALL_TRAFFIC] } });
  const chosen = await Sandbox.create({ network: { denyOut: ({ allTraffic }) => [allTraffic] } });
  const open = await Sandbox.create();
  const all = [open, closed, listed, chosen];
  const look = `python3 -c "import urllib.request as u; u.urlopen('https://name.invalid')" 2>&1 | grep -o 'Tunnel connection failed: [0-9]*' | tail -1`;
  const answers = await Promise.all(all.map(async (sandbox) => (await sandbox.commands.run(look)).stdout.trim()));
  await Promise.all(all.map((sandbox) => sandbox.kill()));
  return answers;
}

export async function failures() {
  const is = (Class: new (...args: never[]) => Error) => (error: unknown) => error instanceof Class;
  const sandbox = await Sandbox.create("code-interpreter-v1");
  await sandbox.kill();
  return {
    unknown: await Sandbox.connect("sandbox-00000000").catch(is(SandboxNotFoundError)),
    info: await sandbox.getInfo().catch(is(SandboxNotFoundError)),
    command: await sandbox.commands.run("true").catch(is(SandboxNotFoundError)),
    file: await sandbox.files.read("x").catch(is(TimeoutError)),
    template: await Sandbox.create("no-such-template").catch(is(NotFoundError)),
    argument: await Sandbox.create({ timeoutMs: 100_000_000_000 }).catch(is(InvalidArgumentError)),
  };
}

export async function clients(apiUrl: string) {
  const client = new E2B({ apiUrl, requestTimeoutMs: 30_000 });
  const sandbox = await client.Sandbox.create();
  const { stdout } = await sandbox.commands.run("echo through the client");
  return { stdout, isSandbox: sandbox instanceof Sandbox, killed: await client.Sandbox.kill(sandbox.sandboxId) };
}

/** A class of one's own keeps its type through `create` and `connect`. */
export class Workshop extends Sandbox {
  async version(): Promise<string> {
    return (await this.commands.run("python3 -c 'import sys; print(sys.version_info.major)'")).stdout.trim();
  }
}

export async function subclasses() {
  const workshop = await Workshop.create();
  const again = await Workshop.connect(workshop.sandboxId);
  const version = await again.version();
  await workshop.kill();
  return { version, isWorkshop: again instanceof Workshop };
}

export function addresses(sandbox: Sandbox) {
  return new URL(`https://${sandbox.getHost(3000)}/path`).pathname.endsWith("/path");
}
