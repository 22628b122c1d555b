export type * from "./actions.ts";
export type * from "./driver.ts";
export { probeEngine as probeGvisor } from "./drivers/pick.ts";
export { parsePolicy as checkNetworkPolicy } from "./egress/policy.ts";
export { openEngine } from "./engine.ts";
export { type Action, allowedStates } from "./states.ts";
