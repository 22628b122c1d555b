export type * from "./actions.ts";
export { scopes } from "./actions.ts";
export type * from "./driver.ts";
export { probeEngine as probeGvisor } from "./drivers/pick.ts";
export { openEngine } from "./engine.ts";
export { unknownSandbox } from "./sandboxes.ts";
export { type Action, allowedStates } from "./states.ts";
export { openKeys } from "./store/keys.ts";
export { isSameOwner, unknownTemplate } from "./templates.ts";
