export * from "./errors.ts";
export * from "./ids.ts";
export * from "./limits.ts";
export type * from "./rest.ts";
