/**
 * The terminal of the 0.1.0 client: a shell that begins with the upgrade. Every message is text and holds one JSON object; the last one from
 * here carries the exit.
 */

import { create } from "@bufbuild/protobuf";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { RawData } from "ws";
import { z } from "zod";
import type { Framing } from "./session.ts";

export const ptyPath = "/v1/pty";

export const ptyFraming: Framing = { path: ptyPath, subprotocol: "mitos.pty.v1", opening, decode, encode };

/** A terminal's sides are 16-bit numbers. */
const sideMax = 65_535;

function opening(query: URLSearchParams): pb.ExecOpen {
  const size = { cols: side(query.get("cols"), 80), rows: side(query.get("rows"), 24) };
  return create(pb.ExecOpenSchema, { pty: { size } });
}

/** Anything but a number in range is read as not said. */
function side(text: string | null, otherwise: number): number {
  const value = /^\d{1,6}$/.test(text ?? "") ? Number(text) : 0;
  return value >= 1 && value <= sideMax ? value : otherwise;
}

const message = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("input"), data: z.base64() }),
  z.object({ kind: z.literal("resize"), cols: z.int(), rows: z.int() }),
]);

/** What these clients send beside input and resize is ignored, and so is what does not parse. */
function decode(data: RawData, isBinary: boolean): pb.ExecRequest | undefined {
  if (isBinary) return undefined;
  const parsed = message.safeParse(parse(data));
  if (!parsed.success) return undefined;
  if (parsed.data.kind === "input") {
    return create(pb.ExecRequestSchema, { msg: { case: "stdin", value: Buffer.from(parsed.data.data, "base64") } });
  }
  const { cols, rows } = parsed.data;
  const inRange = (value: number) => value >= 1 && value <= sideMax;
  if (!inRange(cols) || !inRange(rows)) return undefined;
  return create(pb.ExecRequestSchema, { msg: { case: "resize", value: create(pb.WindowSizeSchema, { cols, rows }) } });
}

function parse(data: RawData): unknown {
  try {
    return JSON.parse(String(data));
  } catch {
    return undefined;
  }
}

function encode({ msg }: pb.ExecResponse): string {
  if (msg.case === "exit") {
    const { exitCode, error } = msg.value;
    return JSON.stringify({ kind: "exit", exit_code: exitCode, ...(error ? { error } : {}) });
  }
  return JSON.stringify({ kind: "output", data: Buffer.from(msg.value ?? []).toString("base64") });
}
