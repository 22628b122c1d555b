// Follows a terminal and a process over connections that are cut again and again, and prints whether all of their output arrived once.
import { create } from "@mitos/sdk";

const numbers = Array.from({ length: 20_000 }, (_, index) => `${index + 1}`);
const text = (bytes) => new TextDecoder().decode(bytes);

async function terminal(sandbox) {
  let seen = "";
  const { promise: asked, resolve } = Promise.withResolvers();
  const onData = (data) => {
    seen += text(data);
    if (seen.endsWith("ready\r\n")) resolve();
  };
  const program = "seq 1 20000; echo ready; read line; echo got $line; exit 7";
  const pty = await sandbox.createPty(onData, { command: ["sh", "-c", program] });
  await Promise.race([asked, pty.wait()]);
  await pty.sendInput("input\n");
  const exitCode = await pty.wait();
  const whole = [...numbers, "ready", "input", "got input", ""].join("\r\n");
  return { exitCode, same: seen === whole, offset: pty.offset === whole.length };
}

async function background(sandbox) {
  let called = "";
  const process = sandbox.execBackground("seq 1 20000; exit 3", { onStdout: (data) => (called += text(data)) });
  const { exitCode, stdout } = await process.wait();
  const whole = `${numbers.join("\n")}\n`;
  let iterated = "";
  for await (const event of process.output({ stdoutFrom: 5 })) if (event.type === "stdout") iterated += text(event.data);
  return { exitCode, called: called === whole, result: stdout === whole, iterated: iterated === whole.slice(5) };
}

const sandbox = await create("python");
try {
  console.log(JSON.stringify({ terminal: await terminal(sandbox), background: await background(sandbox) }));
} finally {
  await sandbox.terminate();
}
