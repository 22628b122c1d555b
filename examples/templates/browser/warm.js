// Runs in the template's JavaScript kernel before it is saved: every sandbox wakes with `browser`, a Chromium that is running.
const { chromium } = require("/app/node_modules/playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium-headless-shell",
  // The sandbox is the wall; Chromium's own needs system calls that gVisor does not have.
  args: ["--no-sandbox"],
});
// The first page of a browser starts half of its processes.
await (await browser.newPage()).close();
