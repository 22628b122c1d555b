import { type Guest, MissingPart } from "../host/parts.ts";

/** Seam: what the set-up makes is written beside this part. */
export interface Assets {
  readonly vmm: { readonly root: string; readonly program: string; readonly build: string };
  readonly kernel: { readonly path: string; readonly release: string; readonly hash: string };
}

export async function findAssets(_guest: Guest): Promise<Assets> {
  throw new MissingPart("the parts of microVMs are not there", "Run `mitos setup microvm`, which fetches and makes them.");
}
