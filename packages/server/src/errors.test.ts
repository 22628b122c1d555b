import { MitosError } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { isOurFault, toMitosError } from "./errors.ts";

describe("an error of another world", () => {
  it.each(["ECANCELED", "ECONNRESET", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE"])("with %s is a client that has left", (code) => {
    const error = toMitosError(Object.assign(new Error("write"), { code }));
    expect(error.code).toBe("canceled");
    expect(isOurFault(error)).toBe(false);
  });

  it("is ours to explain when nothing is known about it", () => {
    const reason = new Error("secret detail");
    const error = toMitosError(reason);
    expect(error).toMatchObject({ code: "internal", detail: { reason } });
    expect(isOurFault(error)).toBe(true);
    expect(JSON.stringify(error.toEnvelope())).not.toContain("secret");
  });

  it("that is the catalogue's already stays as it is", () => {
    const error = new MitosError("not_found");
    expect(toMitosError(error)).toBe(error);
  });
});
