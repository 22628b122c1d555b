import type { DiskUsageJson, ImageJson, NameJson, Unchecked } from "@mitos/protocol";
import { isObject } from "./errors.ts";

/** An image whose layers are all on the server. */
export interface ImageInfo {
  /** In full: `docker.io/library/python:3.12-slim`. */
  reference: string;
  /** Of its manifest for the server's processor. */
  digest: string;
  layers: number;
  /** Of its files, also of those that it shares with other images. */
  rootBytes: number;
  pulledAt: string;
  lastUsedAt: string;
}

/** What a push has put into a registry. */
export interface PushedImage {
  /** In full. */
  reference: string;
  digest: string;
}

/** Which thing a name means on a server: the first of these that there is. */
export interface NameMeaning {
  name: string;
  /** A template that was made there, an image of the configured registry, the server's own root, or nothing. */
  means: "template" | "image" | "host" | "nothing";
  /** Of an image, in full; else empty. */
  reference: string;
}

/** Bytes on a server's disk. What several things share is counted once, in `totals.layers`. */
export interface DiskUsage {
  templates: {
    id: string;
    /** Of the saved machine. */
    snapshotBytes: number;
    /** Of its layers, also of those that it shares. */
    rootBytes: number;
    /** Of layers that no other template has. */
    ownBytes: number;
  }[];
  /** Of the whole server; undefined for whoever is not its administrator. */
  totals?:
    | {
        layers: { count: number; bytes: number; unusedBytes: number };
        /** Downloads, and the files of copy steps. */
        caches: { bytes: number };
        /** Of templates, forks and paused sandboxes. */
        snapshots: { bytes: number };
        /** What unused layers and caches together may have before the oldest are removed. */
        cacheBytesMax: number;
      }
    | undefined;
}

export function imageFromWire(row: Unchecked<ImageJson>): ImageInfo {
  return {
    reference: String(row.reference ?? ""),
    digest: String(row.digest ?? ""),
    layers: Number(row.layers ?? 0),
    rootBytes: Number(row.root_bytes ?? 0),
    pulledAt: String(row.pulled_at ?? ""),
    lastUsedAt: String(row.last_used_at ?? ""),
  };
}

export function meaningFromWire(row: Unchecked<NameJson>): NameMeaning {
  const known = ["template", "image", "host"] as const;
  return {
    name: String(row.name ?? ""),
    means: known.find((each) => each === row.means) ?? "nothing",
    reference: String(row.reference ?? ""),
  };
}

export function diskUsageFromWire(wire: Unchecked<DiskUsageJson>): DiskUsage {
  const rows = Array.isArray(wire.templates) ? wire.templates.filter(isObject) : [];
  const templates = rows.map((row) => ({
    id: String(row.id ?? ""),
    snapshotBytes: Number(row.snapshot_bytes ?? 0),
    rootBytes: Number(row.root_bytes ?? 0),
    ownBytes: Number(row.own_bytes ?? 0),
  }));
  if (!isObject(wire.totals)) return { templates };
  const { layers, caches, snapshots, cache_bytes_max: cacheBytesMax } = wire.totals;
  const bytes = (of: unknown, member = "bytes") => (isObject(of) ? Number(of[member] ?? 0) : 0);
  return {
    templates,
    totals: {
      layers: { count: bytes(layers, "count"), bytes: bytes(layers), unusedBytes: bytes(layers, "unused_bytes") },
      caches: { bytes: bytes(caches) },
      snapshots: { bytes: bytes(snapshots) },
      cacheBytesMax: Number(cacheBytesMax ?? 0),
    },
  };
}
