import type { Accel, EngineOptions } from "@mitos/engine";

const engines = ["gvisor", "microvm"] as const;
const accels = ["kvm", "tcg"] as const satisfies readonly Accel[];

/** What the suites that make real sandboxes make them with. */
export const engineUnderTest = oneOf("MITOS_TEST_ENGINE", engines);
/** TCG runs everywhere, and shows the same but for the time that it takes. */
const accel = oneOf("MITOS_TEST_ACCEL", ["tcg", ...accels]);

/** For `openEngine`. */
export const engineOptions: Pick<EngineOptions, "engine" | "accel"> =
  engineUnderTest === "gvisor" ? { engine: "gvisor" } : { engine: "microvm", accel };

/** What a machine of it says of itself. */
export const isolationUnderTest = engineUnderTest === "gvisor" ? "gvisor" : (`microvm-${accel}` as const);

/**
 * How many children show that none draws what another has drawn, in forks of how many. Two that went on from one state would show it at once; an
 * emulated processor computes many times longer for each.
 */
export const drawing = isolationUnderTest === "microvm-tcg" ? { children: 6, forkCount: 3 } : { children: 100, forkCount: 10 };

/** What times for work inside are multiplied with: an emulated processor is many times slower, and on a busy host slower still. */
export const patience = isolationUnderTest === "microvm-tcg" ? 4 : 1;

/** For commands that start a server. */
export const engineEnvironment: Readonly<Record<string, string>> =
  engineUnderTest === "gvisor" ? { MITOS_ENGINE: "gvisor" } : { MITOS_ENGINE: "microvm", MITOS_ACCEL: accel };

/** @throws for a name that nobody knows: a suite that silently took the default would show nothing */
function oneOf<T extends string>(variable: string, known: readonly [T, ...T[]]): T {
  const asked = process.env[variable] || known[0];
  const found = known.find((each) => each === asked);
  if (!found) throw new Error(`${variable}=${asked} is none of ${known.join(", ")}`);
  return found;
}
