// create with named options, and everything that is given back with a sandbox.
import { create } from "@mitos/sdk";

await using sandbox = await create({
  template: "python",
  id: "sandbox-sample-options",
  apiKey: "sk-any",
  baseUrl: process.env.MITOS_BASE_URL,
});
console.log(sandbox.id, sandbox.template, sandbox.endpoint === process.env.MITOS_BASE_URL, sandbox.forkTimeMs > 0);
console.log("shows its key:", JSON.stringify(sandbox).includes("sk-any"));
