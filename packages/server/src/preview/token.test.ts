import type { SandboxId } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { looksLikeToken, PreviewSigner } from "./token.ts";

const signer = new PreviewSigner(Buffer.from("0123456789abcdef0123456789abcdef"));
const grant = { sandbox: "sb-abc" as SandboxId, port: 8080, expiresUnix: 1_700_003_600 };
const token = "eyJzIjoic2ItYWJjIiwicCI6ODA4MCwiZSI6MTcwMDAwMzYwMH0.BYLCdXjfcZLRNF7V4xYSFROM9-eN7kpH0FRy_1NMr0g";

describe("a preview token", () => {
  it("is exactly the published one", () => {
    expect(signer.sign(grant)).toBe(token);
  });

  it("is valid up to its last second and expired from the next on", () => {
    expect(signer.verify(token, 1_700_003_600)).toEqual({ grant });
    expect(signer.verify(token, 1_700_003_601)).toEqual({ expired: true });
    expect(signer.verify(token, 1_700_003_600 + 48 * 3600)).toEqual({ expired: true });
  });

  it.each([
    ["with another payload", `${Buffer.from('{"s":"sb-abd","p":8080,"e":1700003600}').toString("base64url")}.${token.split(".")[1]}`],
    ["with another signature", `${token.slice(0, -1)}A`],
    ["with a shorter signature", token.slice(0, -1)],
    ["with a second dot", `${token}.x`],
    ["of no payload", `.${token.split(".")[1]}`],
    ["that is none", "not-a-token"],
    ["that is empty", ""],
  ])("%s is refused", (_what, text) => {
    expect(signer.verify(text, 0)).toEqual({ forged: true });
  });

  it("of another secret is refused", () => {
    expect(new PreviewSigner(Buffer.from("f".repeat(32))).verify(token, 0)).toEqual({ forged: true });
  });

  it.each(["", "fifteen bytes .."])("is not made with the short secret %j", (secret) => {
    const make = () => new PreviewSigner(Buffer.from(secret.slice(0, 15)));
    expect(make).toThrow(expect.objectContaining({ code: "invalid_input" }));
  });

  it.each([[{ ...grant, sandbox: "" as SandboxId }], [{ ...grant, port: 0 }], [{ ...grant, port: 65_536 }]])(
    "is not made for %j",
    (wrong) => {
      expect(() => signer.sign(wrong)).toThrow(expect.objectContaining({ code: "invalid_input" }));
    },
  );

  it("is told from the tokens of programs in sandboxes", () => {
    expect(looksLikeToken(token)).toBe(true);
    for (const other of ["c3d1f0", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", `${"a".repeat(43)}.${"b".repeat(43)}`]) {
      expect(looksLikeToken(other)).toBe(false);
    }
  });
});
