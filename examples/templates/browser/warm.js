// Runs in the template's JavaScript kernel before it is saved: every sandbox wakes with `browser`, a Chromium that is running.
const { chromium } = require("/app/node_modules/playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium-headless-shell",
  // The sandbox is the wall around it. What its network rules allow is reached through its proxy, its own pages without.
  args: ["--no-sandbox", "--proxy-server=http://127.0.0.1:3128"],
});
// The first page of a browser starts half of its processes.
await (await browser.newPage()).close();
