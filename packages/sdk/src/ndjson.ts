import { AgentRunError, isObject, parseJson } from "./errors.ts";

const lineCharsMax = 64 * 1024 * 1024;

/** The objects of a body of one JSON object a line. Leaving the iteration early closes the request. */
export async function* readNdjson(body: ReadableStream<Uint8Array>): AsyncGenerator<Record<string, unknown>, void, undefined> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const text = done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = text.split("\n");
      lines[0] = rest + lines[0];
      rest = done ? "" : lines.pop()!;
      if (rest.length > lineCharsMax) throw brokenLine(`a line of more than ${lineCharsMax} characters`);
      for (const line of lines) {
        if (line.trim() === "") continue;
        const row = parseJson(line);
        if (!isObject(row)) throw brokenLine(`a line of ${line.length} characters that is not a JSON object`);
        yield row;
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function brokenLine(what: string): AgentRunError {
  return new AgentRunError("the server's answer cannot be read", {
    code: "invalid_response",
    cause: `the server sent ${what}`,
    remediation: "Call again; if it fails again, check that client and server are of matching versions.",
  });
}
