/** The copy of the framework that the SDK loads: npm installs it beside the SDK, where suites at the root do not find it. */
export * from "deepagents";
