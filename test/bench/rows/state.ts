import type { Sandbox } from "@mitos/sdk";
import { until } from "../../support/until.ts";
import type { ByHand } from "../by-hand.ts";

/**
 * Python that lets its interpreter hold so much more than itself. Text of random digits: as compressible as data usually is, and no two pieces share
 * their memory.
 */
function holding(mib: number): string {
  return `import os\npiece = os.urandom(1 << 19).hex().encode()\nheld = [bytearray(piece) for _ in range(${mib})]\n`;
}

export async function holdState(sandbox: Sandbox, mib: number): Promise<void> {
  const { error } = await sandbox.runCode(holding(mib));
  if (error) throw new Error(`the interpreter does not hold ${mib} MiB: ${error.name}: ${error.value}`);
}

/** A container of an interpreter that holds the same. */
export async function startHolding(hand: ByHand, mib: number): Promise<string> {
  const program = `${holding(mib)}import time\nopen("/tmp/held", "w").close()\ntime.sleep(1e6)`;
  const container = await hand.start(["/usr/bin/python3", "-c", program]);
  await until(`the interpreter holds ${mib} MiB`, () =>
    hand.exec(container, ["test", "-e", "/tmp/held"]).then(
      () => true,
      () => false,
    ),
  );
  return container;
}
