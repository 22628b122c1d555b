// The flat one-liner: address and key come from the environment.
import { create } from "@mitos/sdk";

const sandbox = await create("python");
console.log((await sandbox.exec("echo hello")).stdout);
await sandbox.terminate();
