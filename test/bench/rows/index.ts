import type { Row } from "../row.ts";
import type { Scale } from "../scale.ts";
import { clientsRow } from "./clients.ts";
import { createRow } from "./create.ts";
import { execRow } from "./exec.ts";
import { filesRow } from "./files.ts";
import { forkRow } from "./fork.ts";
import { growthRow } from "./growth.ts";
import { idleRow } from "./idle.ts";
import { neighboursRow } from "./neighbours.ts";
import { standstillRow } from "./standstill.ts";
import { waitingRow } from "./waiting.ts";

/** In the order of the table. */
export function rowsOf(scale: Scale): readonly Row[] {
  return [
    createRow(),
    execRow(),
    forkRow(scale),
    standstillRow(scale),
    filesRow(scale),
    clientsRow(scale),
    idleRow(scale),
    waitingRow(scale),
    growthRow(scale),
    neighboursRow(scale),
  ];
}
