/** Opens a preview of the running server, edits a file in the sandbox, and sees the server show the edit. */

import { create } from "@mitos/sdk";

await using sandbox = await create("web-app");
const { url, browserUrl } = await sandbox.preview(5173);
console.log("open in a browser:", browserUrl);

const module = new URL(url);
module.pathname += "src/greeting.js";
const greeting = async () => /"(.*)"/.exec(await (await fetch(module)).text())?.[1];

console.log("shown:", await greeting());
await sandbox.files.write("/app/src/greeting.js", 'export const greeting = "Hello from an edit";\n');
while ((await greeting()) !== "Hello from an edit");
console.log("shown:", await greeting());
