"""What a matplotlib figure shows, as a Vega-Lite specification with its numbers.

The Python kernel sends it beside the picture (`application/vnd.vegalite.v5+json`), so that a program can read a plot instead of looking at it.
Lines, points, bars, pies and boxes are told; a figure with nothing of these, or with more than ROWS_MAX values, is a picture alone.
"""

import datetime
import math

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
ROWS_MAX = 10_000
# How matplotlib names a line or a marker that is not drawn.
NOTHING = ("None", "none", "", " ", None)


def chart_of(figure):
    """A specification as a dict, or None. The figure has been drawn: its tick labels exist."""
    shown = [axes for axes in figure.get_axes() if axes.get_visible()]
    if sum(map(count_values, shown)) > ROWS_MAX:
        return None
    charts = [chart for chart in map(chart_of_axes, shown) if chart]
    if not charts:
        return None
    title = getattr(figure, "_suptitle", None)
    whole = charts[0] if len(charts) == 1 else {"concat": charts}
    if title is not None and (len(charts) > 1 or "title" not in whole):
        whole["title"] = title.get_text()
    return {"$schema": SCHEMA, **whole}


def count_values(axes):
    points = sum(len(line.get_xdata(orig=False)) for line in axes.get_lines()) + sum(len(each.get_offsets()) for each in clouds_of(axes))
    return points + len(axes.patches)


def clouds_of(axes):
    """What `scatter` has drawn."""
    return [collection for collection in axes.collections if type(collection).__name__ == "PathCollection"]


def chart_of_axes(axes):
    # Lines in other coordinates are helps for the eye, such as axhline.
    boxes, lines = split_boxes([line for line in axes.get_lines() if line.get_transform() == axes.transData])
    joined = [line for line in lines if line.get_linestyle() not in NOTHING]
    unjoined = [line for line in lines if line not in joined and line.get_marker() not in NOTHING]
    series = [(label_of(cloud), cloud.get_offsets()) for cloud in clouds_of(axes)]
    series += [(label_of(line), pairs_of(line)) for line in unjoined]
    layers = [
        box_layers(axes, boxes),
        point_layer(axes, "line", [(label_of(line), pairs_of(line)) for line in joined]),
        point_layer(axes, "point", series),
        bar_layer(axes),
        pie_layer(axes),
    ]
    layers = [layer for layer in layers if layer]
    if not layers:
        return None
    chart = layers[0] if len(layers) == 1 else {"layer": layers}
    return {**({"title": axes.get_title()} if axes.get_title() else {}), **chart}


# ---------------------------------------------------------------- lines and points


def point_layer(axes, mark, series):
    rows = [
        {"x": plain(x), "y": plain(y), **({"series": label or str(number)} if len(series) > 1 else {})}
        for number, (label, points) in enumerate(series, 1)
        for x, y in points
    ]
    if not rows:
        return None
    encoding = {"x": channel(axes.xaxis, "x", rows), "y": channel(axes.yaxis, "y", rows)}
    if len(series) > 1:
        encoding["color"] = {"field": "series", "type": "nominal"}
    return {"mark": mark, "data": {"values": rows}, "encoding": encoding}


def pairs_of(line):
    """As they were given: dates and categories are no numbers yet."""
    return zip(line.get_xdata(orig=True), line.get_ydata(orig=True))


def channel(axis, field, rows):
    """One direction of a chart: where its values are, what they are, and on which scale."""
    named = {"field": field, "type": type_of(rows, field)}
    title = axis.get_label().get_text()
    scale = axis.get_scale()
    return {**named, "title": title or None, **({"scale": {"type": scale}} if scale in ("log", "symlog") else {})}


def type_of(rows, field):
    values = [row[field] for row in rows if row[field] is not None]
    if all(isinstance(value, (int, float)) for value in values):
        return "quantitative"
    return "temporal" if all(is_date(value) for value in values) else "nominal"


def is_date(value):
    try:
        datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- bars


def bar_layer(axes):
    containers = [container for container in axes.containers if type(container).__name__ == "BarContainer"]
    rows = []
    lying = any(getattr(container, "orientation", "vertical") == "horizontal" for container in containers)
    name_of = names_on(axes.yaxis if lying else axes.xaxis)
    for number, container in enumerate(containers, 1):
        group = label_of(container) or str(number)
        for bar in container.patches:
            middle = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
            value = bar.get_width() if lying else bar.get_height()
            rows.append({"label": name_of(middle), "value": plain(value), **({"group": group} if len(containers) > 1 else {})})
    if not rows:
        return None
    category = {"field": "label", "type": "nominal", "title": (axes.get_ylabel() if lying else axes.get_xlabel()) or None, "sort": None}
    value = {"field": "value", "type": "quantitative", "title": (axes.get_xlabel() if lying else axes.get_ylabel()) or None}
    encoding = {"y": category, "x": value} if lying else {"x": category, "y": value}
    if len(containers) > 1:
        encoding["color"] = {"field": "group", "type": "nominal"}
    return {"mark": "bar", "data": {"values": rows}, "encoding": encoding}


def names_on(axis):
    """How a place on an axis of categories is called: as the tick next to it; on an axis of numbers by its number."""
    formatter, locator = (type(part).__name__ for part in (axis.get_major_formatter(), axis.get_major_locator()))
    # `set_xticks(places, labels)` makes a function of the labels.
    if formatter not in ("StrCategoryFormatter", "FixedFormatter") and (formatter, locator) != ("FuncFormatter", "FixedLocator"):
        return plain
    ticks = [(place, label.get_text()) for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels()) if label.get_text()]
    return lambda place: min(ticks, key=lambda tick: abs(tick[0] - place))[1] if ticks else plain(place)


# ---------------------------------------------------------------- pies


def pie_layer(axes):
    wedges = [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]
    rows = [{"label": label_of(wedge) or str(number), "angle": plain(wedge.theta2 - wedge.theta1)} for number, wedge in enumerate(wedges, 1)]
    if not rows:
        return None
    encoding = {"theta": {"field": "angle", "type": "quantitative"}, "color": {"field": "label", "type": "nominal", "sort": None}}
    return {"mark": "arc", "data": {"values": rows}, "encoding": encoding}


# ---------------------------------------------------------------- boxes


def split_boxes(lines):
    """The lines of each box that `boxplot` has drawn, and the other lines. A box is a closed rectangle, and what belongs to it follows it."""
    boxes, others = [], []
    for line in lines:
        if is_rectangle(line):
            boxes.append([line])
        elif boxes and belongs_to(boxes[-1][0], line):
            boxes[-1].append(line)
        else:
            others.append(line)
    return boxes, others


def is_rectangle(line):
    points = list(zip(line.get_xdata(), line.get_ydata()))
    return len(points) == 5 and points[0] == points[4] and len({x for x, _ in points}) == 2 and len({y for _, y in points}) <= 2


def belongs_to(box, line):
    """Whiskers, caps, the median and outliers lie on or across the middle of the box, and are no longer than two points or have markers only."""
    middle = (min(box.get_xdata()) + max(box.get_xdata())) / 2
    xs = list(line.get_xdata())
    short = len(xs) == 2 or line.get_linestyle() in NOTHING
    return short and (not xs or min(xs) - 1e-9 <= middle <= max(xs) + 1e-9)


def box_layers(axes, boxes):
    """The parts that Vega-Lite's own box plot is made of: the values behind the boxes are not known any more."""
    name_of = names_on(axes.xaxis)
    rows = [row for row in (box_row(lines, name_of) for lines in boxes) if row]
    if not rows:
        return None
    x = {"field": "label", "type": "nominal", "title": axes.get_xlabel() or None, "sort": None}
    y = {"type": "quantitative", "title": axes.get_ylabel() or None}
    outliers = [{"label": row["label"], "value": value} for row in rows for value in row["outliers"]]
    layers = [
        {"mark": "rule", "encoding": {"x": x, "y": {"field": "lower", **y}, "y2": {"field": "upper"}}},
        {"mark": "bar", "encoding": {"x": x, "y": {"field": "q1", **y}, "y2": {"field": "q3"}}},
        {"mark": "tick", "encoding": {"x": x, "y": {"field": "median", **y}}},
    ]
    if outliers:
        layers.append({"mark": "point", "data": {"values": outliers}, "encoding": {"x": x, "y": {"field": "value", **y}}})
    return {"data": {"values": rows}, "layer": layers}


def box_row(lines, name_of):
    box, *rest = lines
    middle = (min(box.get_xdata()) + max(box.get_xdata())) / 2
    low, high = min(box.get_ydata()), max(box.get_ydata())
    level = [line.get_ydata()[0] for line in rest if len(line.get_ydata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    inside = [y for y in level if low <= y <= high]
    upright = [y for line in rest if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1] for y in line.get_ydata()]
    # Markers for themselves are the mean, if it is shown, and then the outliers.
    outliers = ([list(line.get_ydata()) for line in rest if line.get_linestyle() in NOTHING] or [[]])[-1]
    if not inside:
        return None
    lower, upper = min([*upright, low]), max([*upright, high])
    # The median is drawn after the caps, which lie on the box where a whisker has no length.
    return {
        "label": str(name_of(middle)),
        "lower": plain(lower),
        "q1": plain(low),
        "median": plain(inside[-1]),
        "q3": plain(high),
        "upper": plain(upper),
        "outliers": [plain(y) for y in outliers if not lower <= y <= upper],
    }


# ---------------------------------------------------------------- values


def label_of(artist):
    """Labels that begin with `_` are matplotlib's own."""
    label = artist.get_label()
    return "" if not isinstance(label, str) or label.startswith("_") else label


def plain(value):
    """A value as JSON has it; what is not a finite number is missing."""
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if type(value).__name__ == "datetime64":
        return str(value)
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    return str(value)

