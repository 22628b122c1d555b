import { findRunsc, type Runsc } from "../../packages/engine/src/drivers/gvisor/find.ts";
import { MissingPart } from "../../packages/engine/src/drivers/host/parts.ts";
import { distributionRunsc } from "../../scripts/lib/runsc.mjs";

/**
 * The runsc that what is promised is judged by: the distribution's, which is what somebody has who works by hand. With the server's own build as
 * baseline, to bring a faster one along could never pay.
 *
 * @param own - the server's: the answer where the distribution's is of the same version or cannot be had
 * @param distribution - where set-up has unpacked it to
 * @returns notes - say why it is not the distribution's
 */
export async function baselineRunsc(
  own: Runsc,
  distribution: string = distributionRunsc,
): Promise<{ readonly runsc: Runsc; readonly notes: readonly string[] }> {
  try {
    const runsc = await findRunsc(distribution);
    return { runsc: runsc.build === own.build ? own : runsc, notes: [] };
  } catch (error) {
    if (!(error instanceof MissingPart)) throw error;
    return { runsc: own, notes: [`what is done by hand has the build that is ours as well: of the distribution's, ${error.message}`] };
  }
}
