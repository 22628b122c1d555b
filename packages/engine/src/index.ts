export type * from "./actions.ts";
export type * from "./driver.ts";
