import { expect, it } from "vitest";
import { chartOf } from "./charts.ts";

const data = {
  values: [
    { day: "2026-01-02", n: 3, who: "b", kind: "y" },
    { day: "2026-01-01", n: 1, who: "a", kind: "x" },
  ],
};

it("a line chart has a series for each colour, with ticks and scales", () => {
  const encoding = { x: { field: "n", title: "Count" }, y: { field: "day", type: "temporal" }, color: { field: "who" } };
  expect(chartOf({ mark: { type: "line" }, title: { text: "T" }, data, encoding })).toEqual({
    type: "line",
    title: "T",
    x_label: "Count",
    y_label: "day",
    x_ticks: [1, 3],
    x_tick_labels: ["1", "3"],
    x_scale: "linear",
    y_ticks: ["2026-01-02", "2026-01-01"],
    y_tick_labels: ["2026-01-02", "2026-01-01"],
    y_scale: "datetime",
    elements: [
      { label: "b", points: [[3, "2026-01-02"]] },
      { label: "a", points: [[1, "2026-01-01"]] },
    ],
  });
});

it("a scatter chart is one of points, on the scale that was asked for", () => {
  const encoding = { x: { field: "n", scale: { type: "log" } }, y: { field: "who", type: "nominal" } };
  expect(chartOf({ mark: "circle", data, encoding })).toMatchObject({
    type: "scatter",
    x_scale: "log",
    y_scale: "categorical",
    elements: [
      {
        label: "",
        points: [
          [3, "b"],
          [1, "a"],
        ],
      },
    ],
  });
});

it.each([
  { x: { field: "who", type: "nominal" }, y: { field: "n" }, color: { field: "kind" } },
  { y: { field: "who", type: "nominal" }, x: { field: "n" }, color: { field: "kind" } },
])("a bar has its category as label, standing or lying", (encoding) => {
  expect(chartOf({ mark: "bar", data, encoding })).toMatchObject({
    type: "bar",
    elements: [
      { label: "b", value: "3", group: "y" },
      { label: "a", value: "1", group: "x" },
    ],
  });
});

it("a pie's angles are degrees of the whole", () => {
  const encoding = { theta: { field: "n" }, color: { field: "who" } };
  expect(chartOf({ mark: "arc", data, encoding })).toMatchObject({
    type: "pie",
    elements: [
      { label: "b", angle: 270 },
      { label: "a", angle: 90 },
    ],
  });
});

it("a box plot has quartiles, whiskers of 1.5 of their distance, and outliers", () => {
  const values = [1, 2, 3, 4, 5, 100].map((n) => ({ n, who: "a" }));
  expect(chartOf({ mark: "boxplot", data: { values }, encoding: { x: { field: "who" }, y: { field: "n" } } })).toMatchObject({
    type: "box_and_whisker",
    elements: [{ label: "a", min: 1, first_quartile: 2.25, median: 3.5, third_quartile: 4.75, max: 5, outliers: [100] }],
  });
});

it("charts that are put together share the data, by its name too", () => {
  const part = { mark: "bar", data: { name: "d" }, encoding: { x: { field: "who" }, y: { field: "n" } } };
  expect(chartOf({ hconcat: [part, { mark: "geoshape" }, {}], title: "Both", datasets: { d: data.values } })).toMatchObject({
    type: "superchart",
    title: "Both",
    elements: [
      { type: "bar", elements: [{ label: "b" }, { label: "a" }] },
      { type: "unknown", elements: [] },
    ],
  });
});

it.each([undefined, null, "bar", {}, { mark: 1 }])("%j is no chart", (specification) => {
  expect(chartOf(specification)).toBeUndefined();
});

it("a box plot in parts is one chart", () => {
  const values = [{ label: "k", lower: 1, q1: 2, median: 3, q3: 4, upper: 5, outliers: [30] }];
  const x = { field: "label", title: null };
  const layer = [
    { mark: "rule", encoding: { x, y: { field: "lower" }, y2: { field: "upper" } } },
    { mark: "bar", encoding: { x, y: { field: "q1", title: "ms" }, y2: { field: "q3" } } },
  ];
  expect(chartOf({ title: "T", data: { values }, layer })).toEqual({
    type: "box_and_whisker",
    title: "T",
    x_label: "",
    y_label: "ms",
    elements: [{ label: "k", min: 1, first_quartile: 2, median: 3, third_quartile: 4, max: 5, outliers: [30] }],
  });
});
