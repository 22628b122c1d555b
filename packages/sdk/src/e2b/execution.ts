import { parseJson } from "../errors.ts";
import type { Execution as NativeExecution, ExecutionError as NativeExecutionError, Result as NativeResult } from "../run-code.ts";
import { type ChartTypes, chartOf } from "./charts.ts";

/** Such as `image/png`. */
export type MIMEType = string;

/** What a result was made of, by format. */
export interface RawData {
  [key: MIMEType]: unknown;
  data?: Record<string, unknown>;
  chart?: ChartTypes;
}

/** One piece of output of code that runs. */
export class OutputMessage {
  /** What was printed, in the pieces in which it arrived. */
  readonly line: string;
  /** Unix nanoseconds, of its arrival here. */
  readonly timestamp: number;
  /** Whether it came from standard error. */
  readonly error: boolean;

  constructor(line: string, timestamp: number, error: boolean) {
    this.line = line;
    this.timestamp = timestamp;
    this.error = error;
  }

  toString(): string {
    return this.line;
  }
}

/** An exception of the code: a result, not thrown. */
export class ExecutionError {
  name: string;
  value: string;
  traceback: string;

  constructor(name: string, value: string, traceback: string) {
    this.name = name;
    this.value = value;
    this.traceback = traceback;
  }

  static of({ name, value, traceback }: NativeExecutionError): ExecutionError {
    return new ExecutionError(name, value, traceback.join("\n"));
  }
}

const names = {
  text: "text/plain",
  html: "text/html",
  markdown: "text/markdown",
  svg: "image/svg+xml",
  png: "image/png",
  jpeg: "image/jpeg",
  pdf: "application/pdf",
  latex: "text/latex",
  json: "application/json",
  javascript: "application/javascript",
} as const;
type Format = keyof typeof names;
const formats = Object.keys(names) as Format[];
const nameOfType = new Map<string, Format>(formats.map((name) => [names[name], name]));
const vegaLite = /^application\/vnd\.vegalite\.v\d+\+json$/;

/** One display of a cell: the same thing in several formats. */
export class Result {
  /** Whether it is the value of the cell's last expression. */
  readonly isMainResult: boolean;
  declare readonly text?: string;
  declare readonly html?: string;
  declare readonly markdown?: string;
  declare readonly svg?: string;
  /** Base64, as `jpeg` and `pdf`. */
  declare readonly png?: string;
  declare readonly jpeg?: string;
  declare readonly pdf?: string;
  declare readonly latex?: string;
  /** JSON text. */
  declare readonly json?: string;
  declare readonly javascript?: string;
  declare readonly data?: Record<string, unknown>;
  /** Of what was displayed as Vega-Lite. */
  declare readonly chart?: ChartTypes;
  /** Formats without a name of their own, by MIME type. */
  readonly extra: Record<string, unknown>;
  readonly raw: RawData;

  constructor(rawData: RawData, isMainResult: boolean) {
    this.isMainResult = isMainResult;
    this.raw = { ...rawData };
    const { data, chart, ...rest } = rawData;
    this.extra = {};
    for (const [key, value] of Object.entries(rest)) {
      if (Object.hasOwn(names, key)) Object.assign(this, { [key]: value });
      else this.extra[key] = value;
    }
    if (data) this.data = data;
    if (chart) this.chart = chart;
  }

  static of({ data, isMainResult }: NativeResult): Result {
    const raw: RawData = {};
    for (const [type, value] of Object.entries(data)) raw[nameOfType.get(type) ?? type] = value;
    const specification = Object.entries(data).find(([type]) => vegaLite.test(type))?.[1];
    const chart = specification === undefined ? undefined : chartOf(parseJson(specification));
    return new Result(chart ? { ...raw, chart } : raw, isMainResult);
  }

  /** All but the plain text and the chart. */
  formats(): string[] {
    const known = formats.filter((name) => name !== "text" && this[name]);
    return [...known, ...(this.data ? ["data"] : []), ...Object.keys(this.extra)];
  }

  toJSON() {
    const { text, html, markdown, svg, png, jpeg, pdf, latex, json, javascript, extra } = this;
    const all = { text, html, markdown, svg, png, jpeg, pdf, latex, json, javascript };
    return Object.keys(extra).length > 0 ? { ...all, extra } : all;
  }
}

/** What the code printed, in the pieces in which it arrived. */
export interface Logs {
  stdout: string[];
  stderr: string[];
}

/** What one run of code gave. */
export class Execution {
  results: Result[];
  logs: Logs;
  error: ExecutionError | undefined;
  /** Never set by runCode: the interpreters here do not number their cells. */
  executionCount: number | undefined;

  constructor(results: Result[] = [], logs: Logs = { stdout: [], stderr: [] }, error?: ExecutionError, executionCount?: number) {
    this.results = results;
    this.logs = logs;
    this.error = error;
    this.executionCount = executionCount;
  }

  static of({ results, logs, error }: NativeExecution): Execution {
    return new Execution(results.map(Result.of), logs, error ? ExecutionError.of(error) : undefined);
  }

  /** The value of the last expression. */
  get text(): string | undefined {
    return this.results.find(({ isMainResult }) => isMainResult)?.text;
  }

  toJSON() {
    return { results: this.results, logs: this.logs, error: this.error };
  }
}
