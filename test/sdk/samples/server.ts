// The lower level: a template, and a sandbox from it; repeated with the same key, each is made once.
import { SandboxServer } from "@mitos/sdk";

const server = new SandboxServer(process.env.MITOS_BASE_URL);
const { id, ready } = await server.createTemplate("sample", { initWaitSeconds: 1 });
console.log(id, ready, (await server.ensureTemplate("sample")).ready);
const sandbox = await server.fork("sample", "sample-first", { idempotencyKey: "sample-key" });
const repeated = await server.fork("sample", "sample-second", { idempotencyKey: "sample-key" });
console.log(sandbox.id, repeated.id);
console.log((await sandbox.exec("python -c 'print(1 + 1)'")).stdout.trimEnd());
console.log((await server.listSandboxes()).filter(({ templateId }) => templateId === "sample").map(({ id }) => id));
await sandbox.terminate();
