/**
 * Exec over a WebSocket: every message is binary and holds one envelope (flag byte, big-endian length, proto-JSON). The first one of the
 * client says what to run; the last one from here carries the exit and the end-stream flag.
 */

import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { RawData } from "ws";
import { envelope, envelopeHeaderBytes, flagEndOfStream } from "../envelope.ts";
import type { Framing } from "./session.ts";

export const execFraming: Framing = { path: `/${pb.Sandbox.typeName}/Exec`, subprotocol: "connect.sandbox.v1", decode, encode };

/** @throws when it is not one whole envelope with known fields */
function decode(data: RawData, isBinary: boolean): pb.ExecRequest {
  const malformed = (cause: string) => new MitosError("invalid_input", { cause });
  if (!isBinary) throw malformed("messages must be binary");
  const message = Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data as Buffer);
  if (message.length < envelopeHeaderBytes) throw malformed("a message is shorter than an envelope");
  if (message[0] !== 0) throw malformed("the flags of an envelope must be 0");
  if (message.readUInt32BE(1) !== message.length - envelopeHeaderBytes)
    throw malformed("the length of an envelope is not that of its message");
  try {
    const json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(message.subarray(envelopeHeaderBytes))) as JsonValue;
    return fromJson(pb.ExecRequestSchema, json, { ignoreUnknownFields: false });
  } catch {
    // The decoder's message may quote what the client typed.
    throw malformed("a message is not an ExecRequest");
  }
}

function encode(response: pb.ExecResponse): Uint8Array {
  const payload = Buffer.from(JSON.stringify(toJson(pb.ExecResponseSchema, response)));
  return envelope(payload, response.msg.case === "exit" ? flagEndOfStream : 0);
}
