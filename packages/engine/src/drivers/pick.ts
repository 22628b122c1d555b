import { MitosError } from "@mitos/protocol";
import type { EngineOptions } from "../actions.ts";
import type { Driver } from "../driver.ts";
import { openMockDriver } from "./mock/driver.ts";

/**
 * The driver that was asked for; `auto` takes the best that works here. The mock is only ever taken by name.
 *
 * @throws not_supported with what is missing and what to install
 */
export async function pickDriver(options: EngineOptions): Promise<Driver> {
  if (options.engine === "mock") return openMockDriver();
  throw new MitosError("not_supported", { cause: "no gvisor yet" });
}
