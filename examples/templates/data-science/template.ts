/** numpy, pandas and matplotlib, imported before the template is saved. Run as a program, this file builds it. */

import { readFileSync } from "node:fs";
import { Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";

const read = (name: string) => readFileSync(new URL(name, import.meta.url), "utf8");

export const template = Template.fromDockerfile(read("Dockerfile"))
  .memory("1Gi")
  .network({ allowDomains: ["pypi.org:443", "files.pythonhosted.org:443"] })
  .warm(read("warm.py"));

if (import.meta.main) {
  const { creationTimeMs } = await buildTemplate("data-science", template, { context: import.meta.dirname });
  console.log(`built data-science in ${(creationTimeMs / 1000).toFixed(1)} s`);
}
