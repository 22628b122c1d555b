// create with a key and an address, and everything that is given back with a sandbox.
import { create } from "@mitos/sdk";

const baseUrl = process.env.MITOS_BASE_URL;
await using sandbox = await create("python", { apiKey: "sk-any", baseUrl, id: "sandbox-sample-options" });
console.log(sandbox.id, sandbox.template, sandbox.endpoint === baseUrl, sandbox.forkTimeMs > 0);
console.log("shows its key:", JSON.stringify(sandbox).includes("sk-any"));
