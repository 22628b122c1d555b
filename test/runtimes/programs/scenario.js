import { AgentRunError, create, ExecutionDeadlineError, NotFoundError, Sandbox } from "@mitos/sdk";

/**
 * What users do with the SDK, in JavaScript that every runtime has.
 *
 * @param {{ baseUrl?: string }} [connection] - where the runtime has no environment
 * @returns what was seen of it, to be compared
 */
export async function scenario(connection = {}) {
  const sandbox = await create({ template: "python", ...connection });
  let child;
  try {
    const seen = {};
    seen.exec = await execWithCallbacks(sandbox);
    seen.execStream = await execAsIterable(sandbox);
    seen.execBackground = await execInBackground(sandbox);
    seen.files = await filesOfAnyKind(sandbox);
    seen.runCode = await runCode(sandbox);
    seen.terminal = await terminal(sandbox);
    seen.errors = await errors(sandbox);
    [child] = await sandbox.fork(1);
    seen.fork = await forked(sandbox, child);
    await child.terminate();
    await sandbox.terminate();
    seen.ended = await Sandbox.connect(sandbox.id, connection).catch(({ name, code, status }) => ({ name, code, status }));
    return seen;
  } catch (error) {
    for (const each of [child, sandbox]) await each?.terminate().catch(() => undefined);
    throw error;
  }
}

const text = (bytes) => new TextDecoder().decode(bytes);

async function execWithCallbacks(sandbox) {
  const pieces = { stdout: "", stderr: "" };
  const { exitCode, stdout, stderr } = await sandbox.exec("echo out; echo err >&2; exit 3", {
    onStdout: (data) => (pieces.stdout += text(data)),
    onStderr: (data) => (pieces.stderr += text(data)),
  });
  return { exitCode, stdout, stderr, pieces };
}

/** The second piece is printed only after the first has been seen. */
async function execAsIterable(sandbox) {
  const seen = [];
  const program = "echo first; until test -e /tmp/seen; do sleep 0.01; done; echo second";
  for await (const event of sandbox.execStream(program)) {
    seen.push(event.type === "exit" ? event.exitCode : text(event.data));
    if (seen.length === 1) await sandbox.files.write("/tmp/seen", "");
  }
  return seen;
}

async function execInBackground(sandbox) {
  let live = "";
  const background = sandbox.execBackground("read line; echo got $line; exit 4", {
    stdin: true,
    onStdout: (data) => (live += text(data)),
  });
  await background.writeStdin("a line\n");
  const { exitCode, stdout } = await background.wait();
  let again = "";
  for await (const event of background.output({ stdoutFrom: 4 })) if (event.type === "stdout") again += text(event.data);
  return { exitCode, stdout, live, again, running: background.running() };
}

async function filesOfAnyKind(sandbox) {
  const small = Uint8Array.from({ length: 256 }, (_, index) => index);
  await sandbox.files.write("/workspace/small", small);
  const large = new Uint8Array(3 * 1024 * 1024 + 7).map((_, index) => (index * 31) & 255);
  await sandbox.files.write("/workspace/large", new Blob([large]).stream());
  await sandbox.files.write("/workspace/parts", parts());
  let at = 0;
  let same = true;
  for await (const chunk of await sandbox.files.readStream("/workspace/large")) {
    same &&= chunk.every((byte, index) => byte === large[at + index]);
    at += chunk.length;
  }
  const back = await sandbox.files.readBytes("/workspace/small");
  return {
    small: back.length === 256 && back.every((byte, index) => byte === index),
    large: same && at === large.length,
    parts: await sandbox.files.read("/workspace/parts"),
    list: (await sandbox.files.list("/workspace")).map(({ name, size }) => `${name} ${size}`).sort(),
    missing: await sandbox.files.exists("/workspace/missing"),
  };
}

async function* parts() {
  for (const part of ["häß", " ", "€😀"]) yield new TextEncoder().encode(part);
}

async function runCode(sandbox) {
  const results = [];
  await sandbox.runCode("x = 41");
  const { text, logs, error } = await sandbox.runCode("print('hi')\nx + 1", { onResult: (result) => results.push(result.text) });
  const failed = await sandbox.runCode("1 / 0");
  return { text, stdout: logs.stdout.join(""), error, results, failed: failed.error?.name };
}

async function terminal(sandbox) {
  let output = "";
  const pty = await sandbox.createPty((data) => (output += text(data)), { cols: 91, rows: 31 });
  await pty.sendInput("stty size; exit 7\n");
  return { exitCode: await pty.wait(), sized: output.includes("31 91") };
}

async function errors(sandbox) {
  const missing = await sandbox.files.read("/workspace/missing").catch((error) => error);
  const late = await sandbox.exec("sleep 30", { timeoutSeconds: 1 }).catch((error) => error);
  return {
    missing: [missing instanceof NotFoundError, missing.name, missing.code, missing.status],
    late: [late instanceof ExecutionDeadlineError, late instanceof AgentRunError, late.name, late.context.timeout_s],
  };
}

async function forked(sandbox, child) {
  const { text } = await child.runCode("x += 1\nx");
  await child.files.write("/workspace/small", "the child's");
  const { text: parents } = await sandbox.runCode("x");
  return { child: text, parent: parents, size: (await sandbox.files.stat("/workspace/small")).size };
}
