// What the page does, called by name from the test. The host that serves the page forwards to the server.
import { create, Sandbox } from "@mitos/sdk";

export { scenario } from "./scenario.js";

const connection = { baseUrl: location.origin };

export async function uploadStream(id, path) {
  const sandbox = await Sandbox.connect(id, connection);
  const parts = new ReadableStream({
    start(controller) {
      for (const part of ["one ", "two"]) controller.enqueue(new TextEncoder().encode(part));
      controller.close();
    },
  });
  await sandbox.files.write(path, parts);
}

export async function startAndLeave(id, program) {
  const sandbox = await Sandbox.connect(id, connection);
  for await (const _event of sandbox.execStream(`echo ready; exec ${program}`)) break;
}

/** Resolves while the program runs. */
export async function start(id, program) {
  const sandbox = await Sandbox.connect(id, connection);
  await sandbox.execStream(`echo ready; exec ${program}`).next();
}

/** @returns the error of a creation, as data */
export async function refusedCreation(options) {
  try {
    await create(options);
    return undefined;
  } catch ({ name, code, remediation }) {
    return { name, code, remediation };
  }
}
