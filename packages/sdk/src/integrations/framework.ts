import { AgentRunError } from "../errors.ts";

/**
 * Loads a framework that is an optional peer dependency.
 *
 * @param load - `() => import("<package>")`, written out where it is used so that bundlers see it
 * @throws integration_dependency_missing, which names the package to install
 */
export async function loadFramework<T>(packageName: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (error) {
    throw new AgentRunError(
      `${packageName} could not be loaded`,
      {
        code: "integration_dependency_missing",
        cause: error instanceof Error ? error.message : String(error),
        remediation: `Install it beside @mitos/sdk: npm install ${packageName}`,
        status: 501,
      },
      error,
    );
  }
}

/** A call of ours whose failures say everything in their message. */
export async function withWholeMessage<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw wholeMessage(error);
  }
}

/**
 * A failure for frameworks that pass on an error's message and nothing else: the message holds code, cause and remedy. The original is its
 * `cause`.
 */
function wholeMessage(error: unknown): unknown {
  if (!(error instanceof AgentRunError)) return error;
  return Object.assign(new Error(error.toString(), { cause: error }), { code: error.code, remediation: error.remediation });
}
