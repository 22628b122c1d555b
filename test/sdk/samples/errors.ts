// Errors: a class for what callers branch on, and for all of them a code and what to do next.
import { AgentRunError, create, NotFoundError, Sandbox, TimeoutTooLargeError } from "@mitos/sdk";

await using sandbox = await create("python");
const attempts = [
  () => Sandbox.connect("sandbox-that-never-was"),
  () => Sandbox.connect("not an id"),
  () => sandbox.exec("true", { timeoutSeconds: 86_401 }),
  () => create({ template: "a-template-with-a-name-that-is-too-long-to-be-one-since-64-is-the-most" }),
  () => create({ baseUrl: "http://127.0.0.1:1" }),
];
for (const attempt of attempts) {
  try {
    await attempt();
  } catch (error) {
    if (!(error instanceof AgentRunError) || error.remediation === "") throw error;
    console.log(error.code, error instanceof NotFoundError, error instanceof TimeoutTooLargeError);
  }
}
