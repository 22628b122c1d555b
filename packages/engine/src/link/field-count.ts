/** How much there is to decode in a message of the guest, found without decoding it. */

import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

/** Messages, and groups of an unknown field, within one another. The decoder is given the same limit. */
export const messageDepthMax = 100;

/**
 * Whether a message has more fields than `max`. Each occurrence at every level is one, unknown ones included, and so is each element of a packed
 * list; an entry of a map is one beside its key and value. A message in a field is made with all its own fields, so each of those is one more,
 * set or not.
 *
 * Reads as `fromBinary` does, so that nothing is decoded uncounted: that goes by the schema, believes no wire type of a field that it knows,
 * and lets a message end behind the one it lies in. Where a message is malformed the count ends, and the decoder refuses it.
 */
export function hasMoreFieldsThan(max: number, schema: DescMessage, bytes: Uint8Array): boolean {
  const counter = new FieldCounter(max, bytes);
  try {
    counter.message(schema, bytes.byteLength, 1);
  } catch {
    // Too many, or malformed.
  }
  return counter.isOver;
}

class FieldCounter {
  #left: number;
  readonly #reader: BinaryReader;

  constructor(max: number, bytes: Uint8Array) {
    this.#left = max;
    this.#reader = new BinaryReader(bytes);
  }

  get isOver(): boolean {
    return this.#left < 0;
  }

  message(schema: DescMessage, length: number, depth: number): void {
    requireDepth(depth);
    const fields = fieldsOf(schema);
    const end = this.#reader.pos + length;
    while (this.#reader.pos < end) {
      const [number, wireType] = this.#reader.tag();
      this.#count();
      const field = fields.get(number);
      if (field) this.#field(field, wireType, depth);
      else this.#unknown(wireType, depth);
    }
  }

  #field(field: DescField, wireType: WireType, depth: number): void {
    switch (field.fieldKind) {
      case "scalar":
        this.#scalar(field.scalar);
        break;
      case "enum":
        this.#reader.uint32();
        break;
      case "message":
        this.#inner(field.message, depth);
        break;
      case "list":
        if (field.listKind === "message") this.#inner(field.message, depth);
        else this.#scalars(field.listKind === "enum" ? ScalarType.INT32 : field.scalar, wireType);
        break;
      case "map":
        this.#mapEntry(field, depth);
        break;
    }
  }

  #inner(schema: DescMessage, depth: number): void {
    this.#count(schema.fields.length);
    this.message(schema, this.#reader.uint32(), depth + 1);
  }

  #mapEntry(field: DescField & { fieldKind: "map" }, depth: number): void {
    const length = this.#reader.uint32();
    const end = this.#reader.pos + length;
    while (this.#reader.pos < end) {
      const [number, wireType] = this.#reader.tag();
      this.#count();
      if (number === 1) this.#scalar(field.mapKey);
      else if (number !== 2) this.#unknown(wireType, depth);
      else if (field.mapKind === "message") this.#inner(field.message, depth);
      else this.#scalar(field.mapKind === "enum" ? ScalarType.INT32 : field.scalar);
    }
  }

  #scalars(type: ScalarType, wireType: WireType): void {
    if (wireType !== WireType.LengthDelimited || type === ScalarType.STRING || type === ScalarType.BYTES) {
      this.#scalar(type);
      return;
    }
    const length = this.#reader.uint32();
    const end = this.#reader.pos + length;
    while (this.#reader.pos < end) {
      this.#count();
      this.#scalar(type);
    }
  }

  #scalar(type: ScalarType): void {
    switch (type) {
      case ScalarType.STRING:
      case ScalarType.BYTES: {
        const length = this.#reader.uint32();
        this.#reader.pos += length;
        break;
      }
      case ScalarType.DOUBLE:
      case ScalarType.FIXED64:
      case ScalarType.SFIXED64:
        this.#reader.pos += 8;
        break;
      case ScalarType.FLOAT:
      case ScalarType.FIXED32:
      case ScalarType.SFIXED32:
        this.#reader.pos += 4;
        break;
      default:
        this.#reader.uint32(); // passes over every varint, longer ones too
    }
  }

  #unknown(wireType: WireType, depth: number): void {
    if (wireType !== WireType.StartGroup) {
      this.#reader.skip(wireType);
      return;
    }
    requireDepth(depth + 1);
    for (;;) {
      const [, inner] = this.#reader.tag();
      if (inner === WireType.EndGroup) break;
      this.#count();
      this.#unknown(inner, depth + 1);
    }
  }

  #count(fields = 1): void {
    this.#left -= fields;
    if (this.#left < 0) throw new RangeError("more fields than allowed");
  }
}

function requireDepth(depth: number): void {
  if (depth > messageDepthMax) throw new RangeError("messages nested too deep");
}

const fieldsBySchema = new WeakMap<DescMessage, ReadonlyMap<number, DescField>>();

function fieldsOf(schema: DescMessage): ReadonlyMap<number, DescField> {
  let fields = fieldsBySchema.get(schema);
  if (!fields) {
    fields = new Map(schema.fields.map((field) => [field.number, field]));
    fieldsBySchema.set(schema, fields);
  }
  return fields;
}
