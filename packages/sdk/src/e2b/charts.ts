/** E2B's chart data, read out of the Vega-Lite specification that a chart library such as Altair displays. */

/** What kind of chart it is. */
export const ChartType = {
  LINE: "line",
  SCATTER: "scatter",
  BAR: "bar",
  PIE: "pie",
  BOX_AND_WHISKER: "box_and_whisker",
  SUPERCHART: "superchart",
  UNKNOWN: "unknown",
} as const;
export type ChartType = (typeof ChartType)[keyof typeof ChartType];

/** How values lie on an axis. Charts here use `linear`, `datetime`, `categorical`, `log` and `symlog`. */
export const ScaleType = {
  LINEAR: "linear",
  DATETIME: "datetime",
  CATEGORICAL: "categorical",
  LOG: "log",
  SYMLOG: "symlog",
  LOGIT: "logit",
  FUNCTION: "function",
  FUNCTIONLOG: "functionlog",
  ASINH: "asinh",
} as const;
export type ScaleType = (typeof ScaleType)[keyof typeof ScaleType];

/** What all charts have. */
export interface Chart {
  type: ChartType;
  title: string;
  elements: unknown[];
}

/** A chart with two axes. */
export interface Chart2D extends Chart {
  x_label?: string;
  y_label?: string;
  x_unit?: string;
  y_unit?: string;
}

/** The points of one series. */
export interface PointData {
  label: string;
  points: [number | string, number | string][];
}

/** A chart of points, joined or not. */
export interface PointChart extends Chart2D {
  x_ticks: (number | string)[];
  x_scale: ScaleType;
  x_tick_labels: string[];
  y_ticks: (number | string)[];
  y_scale: ScaleType;
  y_tick_labels: string[];
  elements: PointData[];
}

/** Points that are joined; an area counts as one. */
export interface LineChart extends PointChart {
  type: "line";
}
/** Points that are not joined. */
export interface ScatterChart extends PointChart {
  type: "scatter";
}

/** One bar. */
export interface BarData {
  label: string;
  value: string;
  group: string;
}
/** Bars, standing or lying. */
export interface BarChart extends Chart2D {
  type: "bar";
  elements: BarData[];
}

/** One slice: its angle in degrees. */
export interface PieData {
  label: string;
  angle: number;
  radius: number;
}
/** Slices of a whole. */
export interface PieChart extends Chart {
  type: "pie";
  elements: PieData[];
}

/** One box: quartiles, whiskers of at most 1.5 times their distance, and what lies outside. */
export interface BoxAndWhiskerData {
  label: string;
  min: number;
  first_quartile: number;
  median: number;
  third_quartile: number;
  max: number;
  outliers: number[];
}
/** A box for each category. */
export interface BoxAndWhiskerChart extends Chart2D {
  type: "box_and_whisker";
  elements: BoxAndWhiskerData[];
}

/** Charts that are displayed together. */
export interface SuperChart extends Chart {
  type: "superchart";
  elements: Chart[];
}

/** A chart of another kind; it has no elements. */
export interface UnknownChart extends Chart {
  type: "unknown";
}

/** Any chart, told apart by its `type`. */
export type ChartTypes = LineChart | ScatterChart | BarChart | PieChart | BoxAndWhiskerChart | SuperChart | UnknownChart;

type Row = Readonly<Record<string, unknown>>;

interface Channel {
  field?: unknown;
  type?: unknown;
  title?: unknown;
  scale?: { type?: unknown };
}

interface Spec {
  mark?: unknown;
  title?: unknown;
  data?: { values?: unknown; name?: unknown };
  datasets?: Record<string, unknown>;
  encoding?: Record<string, Channel>;
}

const combining = ["layer", "concat", "hconcat", "vconcat"] as const;

/** @returns undefined for what is no Vega-Lite specification */
export function chartOf(specification: unknown): ChartTypes | undefined {
  if (typeof specification !== "object" || specification === null) return undefined;
  const spec = specification as Spec & Partial<Record<(typeof combining)[number], Spec[]>>;
  const parts = combining.flatMap((name) => (Array.isArray(spec[name]) ? spec[name] : []));
  const stacked = boxParts(spec);
  if (stacked) return { type: ChartType.BOX_AND_WHISKER, ...axes({ ...spec, ...stacked }), elements: drawnBoxes(rowsOf(spec)) };
  if (parts.length > 0) {
    const shared = { data: spec.data ?? {}, datasets: spec.datasets ?? {} };
    const elements = parts.map((part) => chartOf({ ...shared, ...part })).filter((chart) => chart !== undefined);
    return { type: ChartType.SUPERCHART, title: textOf(spec.title), elements };
  }
  const mark = typeof spec.mark === "object" && spec.mark !== null ? (spec.mark as { type?: unknown }).type : spec.mark;
  if (typeof mark !== "string") return undefined;
  const rows = rowsOf(spec);
  switch (mark) {
    case "line":
    case "area":
      return { type: ChartType.LINE, ...pointChart(spec, rows) };
    case "point":
    case "circle":
    case "square":
      return { type: ChartType.SCATTER, ...pointChart(spec, rows) };
    case "bar":
      return { type: ChartType.BAR, ...axes(spec), elements: bars(spec, rows) };
    case "arc":
      return { type: ChartType.PIE, title: textOf(spec.title), elements: slices(spec, rows) };
    case "boxplot":
      return { type: ChartType.BOX_AND_WHISKER, ...axes(spec), elements: boxes(spec, rows) };
    default:
      return { type: ChartType.UNKNOWN, title: textOf(spec.title), elements: [] };
  }
}

/** Inline rows only: what lies behind a URL is not fetched. */
function rowsOf({ data, datasets }: Spec): Row[] {
  const values = data?.values ?? (typeof data?.name === "string" ? datasets?.[data.name] : undefined);
  return Array.isArray(values) ? values.filter((row): row is Row => typeof row === "object" && row !== null) : [];
}

function axes({ title, encoding }: Spec): Pick<Chart2D, "title" | "x_label" | "y_label"> {
  return { title: textOf(title), x_label: labelOf(encoding?.x), y_label: labelOf(encoding?.y) };
}

function pointChart(spec: Spec, rows: Row[]): Omit<PointChart, "type"> {
  const [x, y] = [spec.encoding?.x, spec.encoding?.y];
  const elements = [...groups(rows, spec.encoding?.color)].map(([label, members]) => ({
    label,
    points: members.map((row): [number | string, number | string] => [cellOf(row, x), cellOf(row, y)]),
  }));
  const xTicks = ticks(rows, x);
  const yTicks = ticks(rows, y);
  return {
    ...axes(spec),
    x_ticks: xTicks,
    x_tick_labels: xTicks.map(String),
    x_scale: scaleOf(x),
    y_ticks: yTicks,
    y_tick_labels: yTicks.map(String),
    y_scale: scaleOf(y),
    elements,
  };
}

function bars({ encoding }: Spec, rows: Row[]): BarData[] {
  // Bars lie when the category is on the other axis.
  const lies = encoding?.y?.type === "nominal" || encoding?.y?.type === "ordinal";
  const [category, value] = lies ? [encoding?.y, encoding?.x] : [encoding?.x, encoding?.y];
  return rows.map((row) => ({
    label: String(cellOf(row, category)),
    value: String(cellOf(row, value)),
    group: encoding?.color ? String(cellOf(row, encoding.color)) : "",
  }));
}

/** Angles in degrees of the whole, as a pie has them. */
function slices({ encoding }: Spec, rows: Row[]): PieData[] {
  const sizes = rows.map((row) => Number(cellOf(row, encoding?.theta)) || 0);
  const whole = sizes.reduce((sum, size) => sum + size, 0) || 1;
  return rows.map((row, index) => ({ label: String(cellOf(row, encoding?.color)), angle: (sizes[index]! / whole) * 360, radius: 1 }));
}

function boxes({ encoding }: Spec, rows: Row[]): BoxAndWhiskerData[] {
  return [...groups(rows, encoding?.x)].map(([label, members]) => {
    const values = members
      .map((row) => Number(cellOf(row, encoding?.y)))
      .filter(Number.isFinite)
      .sort((one, other) => one - other);
    const [first, median, third] = [quantile(values, 0.25), quantile(values, 0.5), quantile(values, 0.75)];
    const reach = 1.5 * (third - first);
    const inside = values.filter((value) => value >= first - reach && value <= third + reach);
    const outliers = values.filter((value) => value < first - reach || value > third + reach);
    return { label, min: inside[0] ?? 0, first_quartile: first, median, third_quartile: third, max: inside.at(-1) ?? 0, outliers };
  });
}

/** The bar of a box plot that was put together of its parts, as the Python kernel tells one of matplotlib's. */
function boxParts({ layer }: { layer?: Spec[] }): Spec | undefined {
  return layer?.find(({ encoding }) => encoding?.y?.field === "q1" && encoding.y2?.field === "q3");
}

function drawnBoxes(rows: Row[]): BoxAndWhiskerData[] {
  return rows.map(({ label, lower, q1, median, q3, upper, outliers }) => ({
    label: String(label ?? ""),
    min: Number(lower),
    first_quartile: Number(q1),
    median: Number(median),
    third_quartile: Number(q3),
    max: Number(upper),
    outliers: Array.isArray(outliers) ? outliers.map(Number) : [],
  }));
}

function quantile(sorted: readonly number[], share: number): number {
  if (sorted.length === 0) return 0;
  const at = (sorted.length - 1) * share;
  const below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at - Math.floor(at));
}

function groups(rows: readonly Row[], by: Channel | undefined): Map<string, Row[]> {
  const all = new Map<string, Row[]>();
  for (const row of rows) {
    const label = typeof by?.field === "string" ? String(cellOf(row, by)) : "";
    const members = all.get(label);
    if (members) members.push(row);
    else all.set(label, [row]);
  }
  return all;
}

function ticks(rows: readonly Row[], channel: Channel | undefined): (number | string)[] {
  return [...new Set(rows.map((row) => cellOf(row, channel)))].sort((one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : 0,
  );
}

function cellOf(row: Row, channel: Channel | undefined): number | string {
  const value = typeof channel?.field === "string" ? row[channel.field] : undefined;
  return typeof value === "number" ? value : String(value ?? "");
}

function scaleOf(channel: Channel | undefined): ScaleType {
  const named = channel?.scale?.type;
  if (named === "log" || named === "symlog") return named;
  if (channel?.type === "temporal") return ScaleType.DATETIME;
  return channel?.type === "nominal" || channel?.type === "ordinal" ? ScaleType.CATEGORICAL : ScaleType.LINEAR;
}

function labelOf(channel: Channel | undefined): string {
  if (channel?.title === null) return ""; // asked for: none
  return textOf(channel?.title) || textOf(channel?.field);
}

function textOf(value: unknown): string {
  if (typeof value === "string") return value;
  const { text } = (typeof value === "object" && value !== null ? value : {}) as { text?: unknown };
  return typeof text === "string" ? text : "";
}
