"""What a report draws, as figures of plotly: plain JSON, whose colours the page chooses, by whether it is dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pocketphi.compiler.report.choices import Choices, Point
from pocketphi.compiler.report.weights import FileRow, WeightRow
from pocketphi.targets.memory import Footprint

Figure = dict[str, Any]
"""`data` and `layout`, as plotly has them."""
MB = 1e6


def treemap(rows: Sequence[WeightRow], files: Sequence[FileRow], whole: int, targets: Sequence[str]) -> Figure:
    """Files, in them layers, in these weights; the area is bytes. whole: of all files."""
    ids, labels, parents, values, texts, kinds = ["all"], ["all files"], [""], [whole], [""], ["all"]

    def add(own: str, label: str, parent: str, size: int, text: str, kind: str) -> None:
        ids.append(own)
        labels.append(label)
        parents.append(parent)
        values.append(size)
        texts.append(text)
        kinds.append(kind)

    for file in files:
        add(file.name, file.name, "all", file.bytes, "", "file")
        if file.target is None:
            continue
        at, layers = targets.index(file.target), dict.fromkeys(row.layer for row in rows)
        for layer in layers:
            inside = [row for row in rows if row.layer == layer]
            parent = file.name
            if layer is not None:
                parent = f"{file.name}/{layer}"
                add(parent, f"layer {layer}", file.name, sum(row.bytes[at] for row in inside), "", "layer")
            for row in inside:
                add(f"{file.name}/{row.name}", row.kind, parent, row.bytes[at], row.form, row.kind)
        if file.bytes > file.weights:
            rest = file.bytes - file.weights
            add(f"{file.name}/rest", "norms, rotary tables, container", file.name, rest, "", "rest")
    drawn = {
        "type": "treemap",
        "ids": ids,
        "labels": labels,
        "parents": parents,
        "values": values,
        "text": texts,
        "customdata": kinds,
        "branchvalues": "total",
        "maxdepth": 4,
        "textinfo": "label+percent root",
        "hovertemplate": "%{label}<br>%{value:,} bytes<br>%{percentRoot:.2%} of all<br>%{text}<extra></extra>",
        "tiling": {"pad": 1},
        "marker": {"pad": {"t": 15, "l": 1, "r": 1, "b": 1}},
        "pathbar": {"visible": True},
    }
    return {"data": [drawn], "layout": {"margin": {"t": 24, "l": 0, "r": 0, "b": 0}, "height": 460}}


def by_layer(rows: Sequence[WeightRow], values: Mapping[str, float], unit: str, log: bool = False) -> Figure:
    """A heat map: layers down, kinds of weights across. What belongs to no layer has a row of its own.

    values: by the name of a weight; log: colour by the order of magnitude
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows))
    held = {(row.layer, row.kind): values.get(row.name) for row in rows}
    cells = [[held.get((layer, kind)) for kind in kinds] for layer in layers]
    least = min((value for row in cells for value in row if value), default=1e-12)
    colour = [
        [None if value is None else math.log10(max(value, least)) if log else value for value in row] for row in cells
    ]
    drawn: dict[str, Any] = {
        "type": "heatmap",
        "x": kinds,
        "y": ["no layer" if layer is None else f"layer {layer}" for layer in layers],
        "z": colour,
        "customdata": cells,
        "hovertemplate": f"%{{y}}, %{{x}}<br>%{{customdata:.4g}} {unit}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 10},
    }
    if log:
        shown = sorted({round(value) for row in colour for value in row if value is not None})
        drawn["colorbar"] |= {"tickvals": shown, "ticktext": [f"10<sup>{one}</sup>" for one in shown]}
    layout = {
        "height": 150 + 14 * len(layers),
        "yaxis": {"autorange": "reversed", "automargin": True, "tickfont": {"size": 10}, "nticks": 40},
        "xaxis": {"side": "top", "automargin": True, "tickangle": -30},
        "margin": {"t": 70, "l": 10, "r": 10, "b": 10},
    }
    return {"data": [drawn], "layout": layout}


def quality(choices: Choices, others: Sequence[Point] = ()) -> Figure:
    """Expected KL against bytes: the best of each size, what was not chosen, and the bundle. others: bundles beside it."""
    marked = {"type": "scatter", "mode": "markers"}
    front = choices.frontier()
    drawn = [
        {
            **_points(front),
            "type": "scatter",
            "mode": "lines",
            "name": "the best of each size",
            "line": {"shape": "linear"},
        },
        {
            **_points(choices.neighbours()),
            **marked,
            "name": "one weight otherwise",
            "marker": {"size": 5, "opacity": 0.55},
        },
        {**_points(choices.alike()), **marked, "name": "all weights alike", "marker": {"size": 8, "symbol": "diamond"}},
        {**_points([choices.own]), **marked, "name": "this bundle", "marker": {"size": 14, "symbol": "star"}},
    ]
    if others:
        drawn.append({**_points(others), **marked, "name": "against", "marker": {"size": 12, "symbol": "x"}})
    layout = {
        "height": 440,
        "xaxis": {"title": {"text": "MB, all files"}, "automargin": True},
        "yaxis": {
            "title": {"text": "expected KL, nats a token"},
            "type": "log",
            "automargin": True,
            "exponentformat": "power",
            "dtick": 1,
        },
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"t": 10, "l": 10, "r": 10, "b": 10},
        "hovermode": "closest",
    }
    return {"data": drawn, "layout": layout}


def memory(points: Sequence[tuple[int, Footprint]], limits: Mapping[int, str]) -> Figure:
    """Bytes while it runs, by the tokens that the cache holds, from the plan's model. limits: bytes that an app may use, and
    of which device."""
    tokens = [count for count, _ in points]
    parts = {
        "weights as the runtime keeps them": [run.weights for _, run in points],
        "the runtime itself": [run.fixed for _, run in points],
        "a prompt on its way through": [run.activations for _, run in points],
        "keys and values": [run.kv_cache(count) for count, run in points],
    }
    drawn: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "memory",
            "name": name,
            "x": tokens,
            "y": [size / MB for size in sizes],
            "hovertemplate": "%{x:,} tokens: %{y:,.0f} MB<extra>" + name + "</extra>",
        }
        for name, sizes in parts.items()
    ]
    top = max(run.total(count) for count, run in points)
    near = sorted(limit for limit in limits if limit < 1.6 * top)[-3:] or sorted(limits)[:1]
    for limit in near:
        if limit < 4 * top:
            drawn.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"an app on {limits[limit]}",
                    "x": [tokens[0], tokens[-1]],
                    "y": [limit / MB] * 2,
                    "line": {"dash": "dash", "width": 1.5},
                    "hovertemplate": f"{limit / MB:,.0f} MB: an app on {limits[limit]}<extra></extra>",
                }
            )
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "tokens in the cache"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "MB"}, "automargin": True, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"t": 10, "l": 10, "r": 10, "b": 10},
    }
    return {"data": drawn, "layout": layout}


def roofline(fits: Sequence[Mapping[str, Any]]) -> Figure:
    """Tokens a second that a device's memory allows: from a full cache to an empty one. fits: device, title, decode,
    decode_full, ok."""
    drawn = []
    for ok, name in ((True, "fits"), (False, "does not fit")):
        rows = [one for one in fits if one["ok"] is ok]
        if rows:
            drawn.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "y": [one["device"] for one in rows],
                    "base": [one["decode_full"] for one in rows],
                    "x": [one["decode"] - one["decode_full"] for one in rows],
                    "customdata": [[one["decode_full"], one["decode"], one["title"]] for one in rows],
                    "hovertemplate": "%{customdata[2]}: at most %{customdata[1]:,.0f} tokens/s, "
                    "%{customdata[0]:,.0f} with a full cache"
                    "<extra></extra>",
                }
            )
    layout = {
        "height": 130 + 24 * len(fits),
        "barmode": "overlay",
        "xaxis": {"title": {"text": "tokens/s: full cache … empty"}, "rangemode": "tozero", "automargin": True},
        "yaxis": {
            "automargin": True,
            "categoryorder": "array",
            "categoryarray": [one["device"] for one in reversed(fits)],
        },
        "legend": {"orientation": "h", "y": 1.08},
        "margin": {"t": 10, "l": 10, "r": 10, "b": 10},
    }
    return {"data": drawn, "layout": layout}


def _points(points: Sequence[Point]) -> dict[str, Any]:
    return {
        "x": [point.bytes / MB for point in points],
        "y": [point.kl for point in points],
        "text": [point.what for point in points],
        "hovertemplate": "%{text}<br>%{x:,.2f} MB, KL %{y:.3g}<extra></extra>",
    }
