// What bin/mitos-mcp starts. Plain JavaScript, so that a Node which is too old can say so.
const neededMajor = 24;

if (Number(process.versions.node.split(".")[0]) >= neededMajor) {
  const { main } = await import("../src/main.ts");
  await main(process.argv.slice(2));
} else {
  process.stderr.write(`error: Node.js ${process.versions.node} is too old\n`);
  process.stderr.write("cause: the pinned Node.js is not installed in node_modules\n");
  process.stderr.write(`next step: run \`npm run setup\` in the checkout, or use Node.js ${neededMajor} or newer\n`);
  process.exitCode = 1;
}
