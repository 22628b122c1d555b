// fork: each child goes on from the sandbox's state, and none sees what another does afterwards.
import { create } from "@mitos/sdk";

const sandbox = await create("python");
await sandbox.files.write("/workspace/plan.txt", "draft");
await sandbox.runCode("attempts = 1");
const [a, b] = await sandbox.fork(2);
await a!.exec("echo a > /workspace/a.txt");
await b!.exec("echo b > /workspace/b.txt");
console.log((await a!.exec("ls /workspace")).stdout.split("\n").join(" "));
console.log((await b!.exec("ls /workspace")).stdout.split("\n").join(" "));
console.log((await b!.runCode("attempts += 1; attempts")).text, (await sandbox.runCode("attempts")).text);
const [named] = await sandbox.fork(1, { id: "sandbox-sample-child" });
console.log(named!.id);
await sandbox.terminate({ subtree: true });
