import { removeEach, startEach } from "../hands.ts";
import { baseline, type Line, ours, type Row } from "../row.ts";
import { timedMs } from "../statistics.ts";

const exec: Line = {
  what: "exec of `true` on a live sandbox",
  baseline: "`runsc exec … true`",
  unit: "ms",
  judge: "ratio",
  reach: { atMost: 0.4 },
  aim: { atMost: 0.15 },
};
const code: Line = {
  what: '`runCode("1+1")` on a live sandbox',
  baseline: "exec of `true`",
  unit: "ms",
  judge: "ratio",
  reach: { atMost: 0.4 },
  aim: { atMost: 0.1 },
};

export function execRow(): Row {
  return {
    name: "exec",
    lines: [exec, code],
    async open({ server, hands }) {
      const sandbox = await server.create();
      const containers = await startEach(hands, (hand) => hand.start(["sleep", "infinity"]));
      await server.machines.atRest();
      // Live ones have done something before: the first time, what was saved with the template comes into memory.
      await Promise.all([
        sandbox.exec("true"),
        sandbox.runCode("1+1"),
        ...containers.map(({ hand, container }) => hand.exec(container, ["true"])),
      ]);
      return {
        steps: [
          async () => {
            const ms = await timedMs(() => sandbox.exec("true"));
            return [ours(exec, ms), baseline(code, ms)];
          },
          ...containers.map(({ hand, container, sample }) => async () => [
            sample(exec, await timedMs(() => hand.exec(container, ["true"]))),
          ]),
          async () => [
            ours(
              code,
              await timedMs(async () => {
                const { text } = await sandbox.runCode("1+1");
                if (text !== "2") throw new Error(`1+1 is ${text}`);
              }),
            ),
          ],
        ],
        async [Symbol.asyncDispose]() {
          await Promise.all([sandbox.terminate(), removeEach(containers)]);
        },
      };
    },
  };
}
