/** A Vite project whose development server runs already. Run as a program, this file builds it. */

import { readFileSync } from "node:fs";
import { Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";

export const template = Template.fromDockerfile(readFileSync(new URL("Dockerfile", import.meta.url), "utf8"))
  .memory("1Gi")
  .network({ allowDomains: ["registry.npmjs.org:443"] })
  // The server translates a module when it is first asked for: with this one that has happened before the template is saved.
  .readyHttp(5173, { path: "/src/main.js" });

if (import.meta.main) {
  const { creationTimeMs } = await buildTemplate("web-app", template, { context: import.meta.dirname });
  console.log(`built web-app in ${(creationTimeMs / 1000).toFixed(1)} s`);
}
