/** How the messages of a Connect stream, and of gRPC, stand one after the other: flags, length, content. */

export const envelopeHeaderBytes = 5;
export const flagEndOfStream = 2;

/** @param flags - default: a message that is not compressed */
export function envelope(payload: Uint8Array, flags = 0): Buffer {
  const whole = Buffer.allocUnsafe(envelopeHeaderBytes + payload.byteLength);
  whole[0] = flags;
  whole.writeUInt32BE(payload.byteLength, 1);
  whole.set(payload, envelopeHeaderBytes);
  return whole;
}
