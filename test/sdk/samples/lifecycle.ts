// The life of a sandbox: a deadline, a pause with all that is in memory, and the lists.
import { AgentRunError, create, Sandbox, SandboxServer } from "@mitos/sdk";

const sandbox = await create({ timeoutSeconds: 600, metadata: { team: "docs" } });
console.log((await sandbox.setTimeout(300)) > Date.now() / 1000);
await sandbox.runCode("kept = 'in memory'");
await sandbox.pause();
try {
  await sandbox.exec("true");
} catch (error) {
  if (!(error instanceof AgentRunError)) throw error;
  console.log(error.code, error.remediation !== "");
}
await sandbox.resume();
console.log((await sandbox.runCode("kept")).text);

const again = await Sandbox.connect(sandbox.id);
console.log((await again.info()).metadata?.team);
console.log((await Sandbox.list()).map(({ id }) => id).includes(sandbox.id));
await again.terminate();
await sandbox.exec("true").catch(({ name, code }) => console.log(name, code));

const server = new SandboxServer();
console.log(
  (await server.health()).status,
  (await server.listTemplates()).some(({ id, ready }) => id === "python" && ready),
);
