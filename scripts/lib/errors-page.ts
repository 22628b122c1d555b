// Prints docs/errors.md from the catalogue.
import { type CatalogueEntry, catalogue } from "../../packages/protocol/src/errors.ts";

const rows = Object.entries<CatalogueEntry>(catalogue)
  .sort(([a], [b]) => a.localeCompare(b))
  .map(
    ([code, { status, connect, retry, message, remediation }]) =>
      `| \`${code}\` | ${status} | \`${connect}\` | ${retry.replaceAll("_", " ")} | ${message} | ${remediation} |`,
  );

process.stdout.write(`# Errors

<!-- Written by npm run generate from packages/protocol/src/errors.ts. -->

Every failure on a \`/v1\` route is an envelope: \`{"error":{"code","message","cause"?,"remediation","context"?}}\`. On Connect routes the code
travels as the Connect code of the third column, with the cause in the message. \`cause\` says what happened in this case; \`remediation\` what to do.

| code | status | Connect code | try again | meaning | what to do |
| --- | --- | --- | --- | --- | --- |
${rows.join("\n")}
`);
