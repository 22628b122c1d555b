/** A Postgres that runs already and has its data loaded. Run as a program, this file builds it. */

import { readFileSync } from "node:fs";
import { Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";

export const template = Template.fromDockerfile(readFileSync(new URL("Dockerfile", import.meta.url), "utf8"))
  .memory("512Mi")
  // What the image itself starts: it makes the database, runs schema.sql, and then serves.
  .entrypoint()
  // Not on the socket: there a server answers also while the data is still being loaded.
  .readyCommand("pg_isready --host=127.0.0.1 --dbname=shop --username=postgres");

if (import.meta.main) {
  const { creationTimeMs } = await buildTemplate("postgres", template, { context: import.meta.dirname });
  console.log(`built postgres in ${(creationTimeMs / 1000).toFixed(1)} s`);
}
