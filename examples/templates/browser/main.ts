/** Serves a page in the sandbox, opens it in the browser that is running there, clicks, and brings a picture of it out. */

import { writeFileSync } from "node:fs";
import { create } from "@mitos/sdk";

const page = `<!doctype html>
<title>Counter</title>
<button onclick="count.textContent = Number(count.textContent) + 1">one more</button>
<output id="count">0</output>
`;

// The page is the sandbox's own. For others, allow here what the browser may visit.
await using sandbox = await create("browser", { network: { block: true } });
await sandbox.files.write("/app/site/index.html", page);
const { logs, error } = await sandbox.runCode(
  `
const { createReadStream } = require("node:fs");
const { createServer } = require("node:http");
createServer((request, response) => {
  response.setHeader("Content-Type", "text/html");
  createReadStream("/app/site/index.html").pipe(response);
}).listen(8000, "127.0.0.1");

const page = await browser.newPage({ viewport: { width: 640, height: 360 } });
await page.goto("http://127.0.0.1:8000/");
for (let clicks = 0; clicks < 3; clicks++) await page.getByRole("button", { name: "one more" }).click();
console.log(await page.title(), "counts", await page.locator("#count").textContent());
await page.screenshot({ path: "/app/page.png" });
`,
  { language: "javascript" },
);
if (error) throw new Error(`${error.name}: ${error.value}`);
console.log(logs.stdout.join("").trim());
writeFileSync("page.png", await sandbox.files.readBytes("/app/page.png"));
console.log("wrote page.png");
