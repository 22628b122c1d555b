import type { DatabaseSync } from "node:sqlite";
import type { Image } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";
import { storageError } from "../storage-error.ts";
import { parseRecord } from "./database.ts";

/** An image as it was pulled. Its layers may be gone by now. */
export interface ImageRecord {
  readonly image: Image;
  /** What its reference meant at the registry: the digest of an index, or of the manifest itself. */
  readonly namedDigest: Digest;
  readonly pulledAtMs: number;
  readonly lastUsedAtMs: number;
}

export class ImageRecords {
  readonly #put;
  readonly #delete;
  readonly #get;
  readonly #all;

  constructor(db: DatabaseSync) {
    this.#put = db.prepare(
      "INSERT INTO images (reference, record) VALUES (?, ?) ON CONFLICT (reference) DO UPDATE SET record = excluded.record",
    );
    this.#delete = db.prepare("DELETE FROM images WHERE reference = ?");
    this.#get = db.prepare("SELECT record FROM images WHERE reference = ?");
    this.#all = db.prepare("SELECT record FROM images ORDER BY reference");
  }

  put(record: ImageRecord): void {
    try {
      this.#put.run(record.image.reference, JSON.stringify(record));
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  delete(reference: string): void {
    try {
      this.#delete.run(reference);
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  get(reference: string): ImageRecord | undefined {
    const row = this.#get.get(reference);
    return row && parseRecord<ImageRecord>(row);
  }

  all(): ImageRecord[] {
    return this.#all.all().map((row) => parseRecord<ImageRecord>(row));
  }
}
