/** Curves as a picture, for the documentation: SVG with nothing in it but lines, marks and words. */

import { round, svg, svgText } from "./svg.ts";

export interface Chart {
  readonly title: string;
  /** What the horizontal axis counts. */
  readonly x: string;
  readonly series: readonly Series[];
}

export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

const width = 420;
const height = 260;
const margin = { left: 52, right: 16, top: 36, bottom: 40 };
const colours = ["#2563eb", "#d97706", "#059669"];
const ticks = 4;
/** Between two words of the horizontal axis; what would stand closer to the last one is left out. */
const labelRoom = 20;

/** One below the other. @param unit - of the vertical axes */
export function drawCharts(charts: readonly Chart[], unit: string): string {
  const drawn = charts.map((chart, index) => `<g transform="translate(0 ${index * height})">${draw(chart, unit)}</g>`);
  const title = charts.map((chart) => chart.title).join("; ");
  return svg({ width, height: height * charts.length, title, fontSize: 11 }, drawn);
}

function draw({ title, x, series }: Chart, unit: string): string {
  const points = series.flatMap((each) => each.points);
  const step = roundStep(Math.max(...points.map((point) => point[1])) / ticks);
  const most = { x: Math.max(...points.map((point) => point[0])), y: step * ticks };
  const at = ([px, py]: readonly [number, number]): [number, number] => [
    margin.left + (px / most.x) * (width - margin.left - margin.right),
    height - margin.bottom - (py / most.y) * (height - margin.top - margin.bottom),
  ];
  const parts = [
    svgText(margin.left, 18, title, "font-weight:600"),
    svgText(width - margin.right, height - 8, x, "text-anchor:end"),
    svgText(width - margin.right, 18, unit, "text-anchor:end"),
  ];
  for (let tick = 0; tick <= ticks; tick += 1) {
    const [left, y] = at([0, step * tick]);
    parts.push(`<path d="M${round(left)} ${round(y)}H${width - margin.right}" stroke="#e5e7eb"/>`);
    parts.push(svgText(left - 6, y + 4, String(step * tick), "text-anchor:end"));
  }
  let labelled = Number.NEGATIVE_INFINITY;
  for (const value of new Set(points.map((point) => point[0]))) {
    const [px] = at([value, 0]);
    if (px - labelled < labelRoom) continue;
    labelled = px;
    parts.push(svgText(px, height - margin.bottom + 14, String(value), "text-anchor:middle"));
  }
  series.forEach((each, index) => {
    const colour = colours[index % colours.length] as string;
    const places = each.points.map(at);
    parts.push(
      `<polyline fill="none" stroke="${colour}" stroke-width="2" points="${places.map((place) => place.map(round).join(",")).join(" ")}"/>`,
    );
    for (const [px, py] of places) parts.push(`<circle cx="${round(px)}" cy="${round(py)}" r="3" fill="${colour}"/>`);
    parts.push(svgText(margin.left + 8, margin.top + 10 + 14 * index, each.name, `fill:${colour}`));
  });
  return parts.join("");
}

/** The next larger one that people count in. */
function roundStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= least) ?? 10);
}
