// getHost: a program in the sandbox under a URL that any program opens.
import { create } from "@mitos/sdk";

await using sandbox = await create("python");
await sandbox.files.write("/workspace/site/index.html", "served from the sandbox");
sandbox.execBackground("python3 -m http.server 8000 --directory /workspace/site");
const url = await sandbox.getHost(8000);
let response = await fetch(url);
while (response.status === 503) response = await fetch(url); // until the program listens
console.log(response.status, await response.text());
await sandbox.getHost(70_000).catch(({ code }) => console.log(code));
