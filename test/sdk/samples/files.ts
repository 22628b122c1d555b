// files: text and bytes, folders, and what is missing.
import { create, NotFoundError } from "@mitos/sdk";

await using sandbox = await create("python");
await sandbox.files.write("/workspace/plan.txt", "draft");
console.log(await sandbox.files.read("/workspace/plan.txt"));
await sandbox.files.write("/workspace/data.bin", new Uint8Array([0, 1, 2]), { mode: 0o600 });
console.log(await sandbox.files.readBytes("/workspace/data.bin"));
await sandbox.files.mkdir("/workspace/results/today");
for (const { name, isDir, size } of await sandbox.files.list("/workspace")) console.log(name, isDir, isDir || size);
console.log(await sandbox.files.exists("/workspace/plan.txt"));
await sandbox.files.remove("/workspace/plan.txt");
console.log(await sandbox.files.exists("/workspace/plan.txt"));
try {
  await sandbox.files.read("/workspace/plan.txt");
} catch (error) {
  if (!(error instanceof NotFoundError)) throw error;
  console.log(error.code, error.status);
}
