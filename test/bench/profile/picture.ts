import { round, svg, svgText } from "../svg.ts";
import type { Part } from "./parts.ts";

/** One hot path: its parts in the order in which they come. */
export interface Path {
  readonly what: string;
  readonly parts: readonly Part[];
}

const width = 760;
const margin = 16;
const barHeight = 22;
const lineHeight = 17;
const colours = ["#94a3b8", "#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#b45309", "#475569"];

/** A bar for each path, as long as it takes, with a colour for each kind of part: SVG with nothing in it but bars and words. */
export function drawPaths(paths: readonly Path[]): string {
  const kinds = [...new Set(paths.flatMap(({ parts }) => parts.map(({ what }) => what)))];
  const colourOf = (what: string) => colours[kinds.indexOf(what) % colours.length] as string;
  const longest = Math.max(...paths.map(totalOf));
  const drawn: string[] = [];
  let y = margin;
  for (const path of paths) {
    drawn.push(svgText(margin, y + 11, `${path.what}: ${format(totalOf(path))} ms`, "font-weight:600"));
    let x = margin;
    for (const { what, ms } of path.parts) {
      const length = (ms / longest) * (width - 2 * margin);
      drawn.push(`<rect x="${round(x)}" y="${y + 17}" width="${round(length)}" height="${barHeight}" fill="${colourOf(what)}"/>`);
      if (length > 30) drawn.push(svgText(x + 4, y + 32, format(ms), "fill:#fff"));
      x += length;
    }
    y += 17 + barHeight + 12;
  }
  for (const kind of kinds) {
    drawn.push(`<rect x="${margin}" y="${y}" width="11" height="11" fill="${colourOf(kind)}"/>`, svgText(margin + 18, y + 10, kind));
    y += lineHeight;
  }
  const title = `Where the time goes: ${paths.map(({ what }) => what).join("; ")}`;
  return svg({ width, height: y + margin, title, fontSize: 12 }, drawn);
}

/** The same as a table. */
export function tableOfPaths(paths: readonly Path[]): string {
  const rows = paths.map((path) => {
    const parts = path.parts.map(({ what, ms }) => `${what} ${format(ms)}`).join(", ");
    return `| ${path.what} | ${format(totalOf(path))} ms | ${parts} |`;
  });
  return ["| what | median | of that, in ms |", "| --- | ---: | --- |", ...rows].join("\n");
}

export function totalOf({ parts }: Path): number {
  return parts.reduce((total, { ms }) => total + ms, 0);
}

function format(ms: number): string {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}
