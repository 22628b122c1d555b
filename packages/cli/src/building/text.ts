import { stripVTControlCharacters } from "node:util";

/** What a build printed, as one line that moves no cursor: of a line that was drawn over, what was last to be seen. */
export function oneLine(text: string): string {
  const last = text.replace(/\r+$/, "").split("\r").at(-1)!;
  return stripVTControlCharacters(last)
    .replaceAll("\t", "  ")
    .replaceAll(/\p{Cc}/gu, "");
}

/** A command of several lines on one. */
export function labelOf(text: string): string {
  return oneLine(text.replaceAll(/\s*\n\s*/g, " "));
}

/** `0.4 s`, `12 s`, `3 min 5 s` */
export function duration(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** Cells of a terminal: characters of East Asia and pictures take two. */
export function widthOf(text: string): number {
  let width = 0;
  for (const character of text) width += cells(character);
  return width;
}

/** At most so many cells, the last of them `…` where something was left out. */
export function cut(text: string, width: number): string {
  if (widthOf(text) <= width) return text;
  let kept = "";
  let used = 0;
  for (const character of text) {
    used += cells(character);
    if (used > width - 1) break;
    kept += character;
  }
  return width > 0 ? `${kept}…` : "";
}

function cells(character: string): number {
  if (/\p{Mn}|\p{Me}|\p{Cf}/u.test(character)) return 0;
  return /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u.test(
    character,
  )
    ? 2
    : 1;
}

/** `###---` of so many cells. */
export function bar(done: number, total: number, width: number): string {
  const full = total > 0 ? Math.round((Math.min(done, total) / total) * width) : 0;
  return "█".repeat(full) + "░".repeat(width - full);
}

/** What the parts of a build that are no steps do. */
export const phases: Readonly<Record<string, string>> = {
  resolve: "looking up",
  pull: "pulling",
  boot: "booting",
  start: "starting",
  warm: "warming",
  save: "saving",
};
