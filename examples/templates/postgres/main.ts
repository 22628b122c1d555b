/** Forks a running database into two that go their own ways. */

import { create, type Sandbox } from "@mitos/sdk";

await using parent = await create("postgres");
console.log("on waking:", await query(parent, "select item, pieces from stock order by item"));

await query(parent, "insert into stock values ('quinces', 5)");
const [first, second] = await parent.fork(2);
await using sale = first!;
await using delivery = second!;
await Promise.all([
  query(sale, "update stock set pieces = pieces - 5 where item = 'quinces'"),
  query(delivery, "update stock set pieces = pieces + 100 where item = 'quinces'"),
]);

for (const [name, sandbox] of Object.entries({ parent, sale, delivery })) {
  console.log(`${name}:`, await query(sandbox, "select pieces from stock where item = 'quinces'"));
}

async function query(sandbox: Sandbox, sql: string): Promise<string> {
  const psql = ["psql", "--host=127.0.0.1", "--username=postgres", "--dbname=shop", "--no-align", "--tuples-only", `--command=${sql}`];
  const { exitCode, stdout, stderr } = await sandbox.exec(psql);
  if (exitCode !== 0) throw new Error(stderr);
  return stdout.trim().replaceAll("\n", ", ");
}
