/** A Chromium that runs already, with Playwright to drive it. Run as a program, this file builds it. */

import { readFileSync } from "node:fs";
import { Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";

const read = (name: string) => readFileSync(new URL(name, import.meta.url), "utf8");

export const template = Template.fromDockerfile(read("Dockerfile"))
  .cpu("2")
  .memory("2Gi")
  .network({ allowDomains: ["deb.debian.org:80", "registry.npmjs.org:443"] })
  .warm("javascript", read("warm.js"));

if (import.meta.main) {
  const { creationTimeMs } = await buildTemplate("browser", template, { context: import.meta.dirname });
  console.log(`built browser in ${(creationTimeMs / 1000).toFixed(1)} s`);
}
