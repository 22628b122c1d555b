/** Signed tokens that open one port of one sandbox until a time: what published clients get from `POST /v1/preview`. */

import { createHmac, timingSafeEqual } from "node:crypto";
import { isId, MitosError, type SandboxId } from "@mitos/protocol";

const context = "mitos-preview-v1";
const secretBytesMin = 16;
/** `<payload>.<HMAC-SHA256>`, both base64url without padding. */
const shape = /^[A-Za-z0-9_-]{16,512}\.[A-Za-z0-9_-]{43}$/;

export interface PreviewGrant {
  readonly sandbox: SandboxId;
  readonly port: number;
  /** The last second in which it is valid. */
  readonly expiresUnix: number;
}

export type Verdict =
  | { readonly grant: PreviewGrant }
  /** Ours, and its time is over. */
  | { readonly expired: true }
  | { readonly forged: true };

export class PreviewSigner {
  readonly #secret: Uint8Array;

  /** @throws invalid_input for a secret of less than 16 bytes */
  constructor(secret: Uint8Array) {
    if (secret.byteLength < secretBytesMin) {
      throw new MitosError("invalid_input", {
        message: "the preview secret is too short",
        cause: `it has ${secret.byteLength} bytes of at least ${secretBytesMin}`,
        remediation: "Set MITOS_PREVIEW_SECRET to at least 16 random bytes, or leave it unset: the server then makes and keeps its own.",
      });
    }
    this.#secret = secret;
  }

  /** @throws invalid_input */
  sign({ sandbox, port, expiresUnix }: PreviewGrant): string {
    if (!isId(sandbox) || !isPort(port)) throw new MitosError("invalid_input", { cause: "a preview needs a sandbox and a port" });
    const payload = Buffer.from(JSON.stringify({ s: sandbox, p: port, e: expiresUnix })).toString("base64url");
    return `${payload}.${this.#mac(payload)}`;
  }

  verify(token: string, nowUnix: number): Verdict {
    const [payload, mac, rest] = token.split(".");
    if (!payload || !mac || rest !== undefined) return { forged: true };
    const expected = Buffer.from(this.#mac(payload));
    const given = Buffer.from(mac);
    if (given.length !== expected.length || !timingSafeEqual(given, expected)) return { forged: true };
    const { s, p, e } = JSON.parse(Buffer.from(payload, "base64url").toString()) as { s: SandboxId; p: number; e: number };
    return nowUnix <= e ? { grant: { sandbox: s, port: p, expiresUnix: e } } : { expired: true };
  }

  #mac(payload: string): string {
    return createHmac("sha256", this.#secret).update(`${context}\0${payload}`).digest("base64url");
  }
}

/** Whether a text is, or was, a token of some Mitos server: such a text never goes on to a sandbox. */
export function looksLikeToken(text: string): boolean {
  if (!shape.test(text)) return false;
  const payload = Buffer.from(text.slice(0, text.indexOf(".")), "base64url").toString();
  return payload.startsWith('{"s":"');
}

export function isPort(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 1 && (value as number) <= 65_535;
}
