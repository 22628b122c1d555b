import { create, type DescMessage, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { guest } from "@mitos/protocol/proto";
import { expect, it } from "vitest";
import { hasMoreFieldsThan, messageDepthMax } from "./field-count.ts";
import { seededRandom } from "./seeded-random.ts";

const { runCode, list } = guest.Agent.method;
const adopt = guest.AdoptSchema;

type Write = (writer: BinaryWriter) => BinaryWriter;
const wire = (write: Write): Uint8Array => write(new BinaryWriter()).finish();
const inside = (number: number, write: Write): Write => {
  return (writer) => write(writer.tag(number, WireType.LengthDelimited).fork()).join();
};
const times = (count: number, write: Write): Write => {
  return (writer) => Array.from({ length: count }).reduce((at: BinaryWriter) => write(at), writer);
};
const empty: Write = (writer) => writer;
const varint = (number: number): Write => {
  return (writer) => writer.tag(number, WireType.Varint).uint32(1);
};
const group = (number: number, write: Write): Write => {
  return (writer) => write(writer.tag(number, WireType.StartGroup)).tag(number, WireType.EndGroup);
};
const nested = (depth: number, write: Write): Write => (depth === 0 ? write : group(99, nested(depth - 1, write)));

function countOf(schema: DescMessage, bytes: Uint8Array): number {
  let count = 0;
  while (hasMoreFieldsThan(count, schema, bytes)) count += 1;
  return count;
}

it.each<[string, DescMessage, Write, number]>([
  ["a message without a field", runCode.output, empty, 0],
  ["a field of bytes, whatever lies in it", runCode.output, inside(1, times(50, varint(1))), 1],
  // A result and an error have two and three fields of their own.
  ["each occurrence of a field that can be set once", runCode.output, times(5, inside(3, empty)), 15],
  ["the lines of a traceback", runCode.output, inside(4, times(5, inside(3, empty))), 4 + 5],
  ["the entries of a map, with key and value", runCode.output, inside(3, times(5, inside(2, times(1, inside(1, empty))))), 3 + 10],
  ["what is unknown in an entry of a map", runCode.output, inside(3, inside(2, times(5, varint(9)))), 3 + 6],
  ["unknown fields", runCode.output, times(5, varint(77)), 5],
  ["unknown fields within a message", runCode.output, inside(3, times(5, varint(77))), 3 + 5],
  ["what lies in a group of an unknown field", runCode.output, group(77, times(5, group(78, varint(1)))), 11],
  ["the entries of a list, each with its fields", list.output, times(5, inside(1, varint(4))), 5 * (1 + 6 + 1)],
  ["the elements of a packed list", guest.EgressPortsReplySchema, inside(1, (writer) => writer.uint32(1).uint32(300).uint32(1)), 4],
  // The decoder takes what follows a field of its schema for that field, whatever the tag says that it is.
  ["a message whose tag says that it is a number", runCode.output, (writer) => varint(4)(writer.tag(3, WireType.Varint).uint32(2)), 3 + 1],
])("counts %s", (_, schema, write, count) => {
  const bytes = wire(write);
  expect(countOf(schema, bytes)).toBe(count);
  fromBinary(schema, bytes);
});

it.each([
  ["cut", Buffer.from([0x1a, 0x7f, 0x0a])],
  ["a tag without a number", Buffer.from([0x00, 0x01])],
  ["the end of no group", Buffer.from([0x7c])],
  ["a group without end", Buffer.from([0x7b, 0x08, 0x01])],
])("leaves to the decoder what is malformed: %s", (_, bytes) => {
  expect(hasMoreFieldsThan(100, runCode.output, bytes)).toBe(false);
  expect(() => fromBinary(runCode.output, bytes)).toThrow();
});

it("goes as deep as the decoder, and no deeper", () => {
  const deepest = wire(nested(messageDepthMax - 1, varint(1)));
  expect(countOf(runCode.output, deepest)).toBe(messageDepthMax);
  fromBinary(runCode.output, deepest, { recursionLimit: messageDepthMax });
  for (const deeper of [wire(nested(messageDepthMax, varint(1))), Buffer.alloc(1_000_000, 0x7b)]) {
    expect(hasMoreFieldsThan(messageDepthMax, runCode.output, deeper)).toBe(false);
    expect(() => fromBinary(runCode.output, deeper, { recursionLimit: messageDepthMax })).toThrow("recursion");
  }
});

it("never counts less than the decoder makes of random bytes (fuzz smoke)", () => {
  const { seed, next } = seededRandom();
  const samples: [DescMessage, Uint8Array][] = [
    [
      runCode.output,
      toBinary(runCode.output, create(runCode.output, { msg: { case: "error", value: { name: "E", traceback: ["a", "b"] } } })),
    ],
    [
      runCode.output,
      toBinary(
        runCode.output,
        create(runCode.output, { msg: { case: "result", value: { text: "t", data: { a: Buffer.from("b"), c: Buffer.from("d") } } } }),
      ),
    ],
    [
      list.output,
      toBinary(
        list.output,
        create(list.output, {
          entries: [
            { name: "a", size: 7n },
            { path: "/b", isDir: true },
          ],
        }),
      ),
    ],
    [adopt, toBinary(adopt, create(adopt, { env: { A: "1", B: "2" }, entropy: Buffer.alloc(9), wallClockUnixNanos: 1n << 60n }))],
    [
      guest.EgressPortsReplySchema,
      toBinary(guest.EgressPortsReplySchema, create(guest.EgressPortsReplySchema, { ports: [1, 443, 70_000] })),
    ],
  ];
  let decoded = 0;
  for (let run = 0; run < 20_000; run += 1) {
    const [schema, sample] = samples[run % samples.length] as [DescMessage, Uint8Array];
    const bytes = Buffer.concat([sample, sample]);
    for (let change = next() % 4; change >= 0; change -= 1)
      bytes[next() % bytes.byteLength] = next() % 3 === 0 ? next() % 256 : next() % 32;
    let message: Message;
    try {
      message = fromBinary(schema, bytes, { readUnknownFields: true, recursionLimit: messageDepthMax });
    } catch {
      continue;
    }
    decoded += 1;
    const made = madeOf(message);
    if (made > 0) expect(hasMoreFieldsThan(made - 1, schema, bytes), `seed ${seed}, ${bytes.toString("hex")}`).toBe(true);
  }
  expect(decoded).toBeGreaterThan(1_000);
});

/** How many values, elements and entries a decoded message has that cannot be there without having been sent. */
function madeOf(value: unknown): number {
  if (typeof value !== "object" || value === null || value instanceof Uint8Array) return 0;
  let count = 0;
  for (const [key, each] of Object.entries(value)) {
    if (key === "$unknown") count += (each as unknown[]).length;
    else if (Array.isArray(each)) count += each.length + each.reduce((sum: number, element) => sum + madeOf(element), 0);
    else if (key === "data" || key === "env" || key === "secrets") count += each instanceof Uint8Array ? 0 : Object.keys(each).length;
    else if (typeof each === "object") count += madeOf(each);
    else if (key !== "$typeName" && key !== "case" && each !== "" && each !== 0 && each !== 0n && each !== false) count += 1;
  }
  return count;
}
