"""Draw the figures of the docs from the numbers beside this file: `python docs/figures/draw.py`.

Each is drawn twice, for a light and a dark page. The same numbers give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Theme:
    """Colours. text: of words; quiet: of others' bars and lines; ours: of what is pocketphi's; box: behind words."""

    text: str
    quiet: str
    ours: str
    box: str


THEMES = {
    "light": Theme(text="#1f2328", quiet="#8c959f", ours="#0969da", box="#f6f8fa"),
    "dark": Theme(text="#e6edf3", quiet="#7d8590", ours="#58a6ff", box="#161b22"),
}


def pipeline(theme: Theme) -> Figure:
    """Checkpoint → graph → int4 once → three bundles → verify."""
    figure, ax = plt.subplots(figsize=(10, 3.1))
    ax.set(xlim=(0, 100), ylim=(0, 31))
    ax.axis("off")
    _box(ax, theme, 0.5, 11, "checkpoint", "Hugging Face folder\nor GGUF file")
    _box(ax, theme, 20.8, 11, "graph", "traced and fused,\nequal to the bit")
    _box(ax, theme, 41.1, 11, "int4 weights", "rounded once,\nfor every target")
    _box(ax, theme, 82, 11, "verify", "saved files run here,\nmust agree", theme.ours)
    for x in (18.1, 38.4):
        _arrow(ax, theme, (x, 15.5), (x + 2, 15.5))
    bundles = ((21.5, "ort-mobile", "ONNX Runtime"), (11, "coreml", "iPhone and Mac"), (0.5, "tvm-arm", "C library"))
    for y, name, runs in bundles:
        _box(ax, theme, 61.5, y, name, runs)
        _arrow(ax, theme, (58.7, 15.5), (60.9, y + 4.5))
        _arrow(ax, theme, (79.1, y + 4.5), (81.4, 15.5))
    return figure


def _box(ax: Axes, theme: Theme, x: float, y: float, title: str, text: str, edge: str = "") -> None:
    width = 17
    style = {"boxstyle": "round,pad=0.3,rounding_size=1", "facecolor": theme.box, "edgecolor": edge or theme.quiet}
    ax.add_patch(FancyBboxPatch((x, y), width, 9, linewidth=1.4, **style))
    middle = x + width / 2
    ax.text(middle, y + 7, title, color=edge or theme.text, weight="bold", size=11.5, ha="center", va="center")
    ax.text(middle, y + 2.9, text, color=theme.text, size=9, ha="center", va="center", linespacing=1.2)


def _arrow(ax: Axes, theme: Theme, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": theme.quiet, "linewidth": 1.4})


def bars(theme: Theme, data: dict[str, Any]) -> Figure:
    """A panel for each thing that was measured, a bar for each tool."""
    panels, tools = data["panels"], data["tools"]
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 0.75 + 0.5 * len(tools)), sharey=True)
    colours = [theme.ours if tool.startswith("pocketphi") else theme.quiet for tool in tools]
    for ax, panel in zip(axes, panels, strict=True):
        ranges = [value if isinstance(value, list) else [value] for value in panel["values"]]
        made = ax.barh(tools, [sum(ends) / len(ends) for ends in ranges], color=colours, height=0.62)
        labels = [" – ".join(f"{end:g}" for end in ends) for ends in ranges]
        ax.bar_label(made, labels, padding=3, color=theme.text, size=10)
        ax.set_title(panel["title"], color=theme.text, size=11, loc="left")
        ax.set_xlim(0, max(ends[-1] for ends in ranges) * 1.3)
        ax.tick_params(left=False, labelsize=10, labelcolor=theme.text)
        ax.set_xticks([])
        ax.set_facecolor("none")
        ax.spines[:].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout(w_pad=1.5)
    return figure


def quality(theme: Theme, data: dict[str, Any]) -> Figure:
    """Bytes to the right, error upwards: the lower left corner is best. Full dots are of the default recipe."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, group in zip(axes, data["groups"], strict=True):
        points = group["points"]
        for point in points:
            colour = theme.quiet if point.get("other") else theme.ours
            face = colour if point["name"].startswith("search") else "none"
            ax.plot(point["mb"], point["kl"], "o", markersize=8, markeredgecolor=colour, markerfacecolor=face)
            dx, dy, side = point.get("label", (9, 0, "left"))
            at = {"textcoords": "offset points", "va": "center", "ha": side, "color": theme.text, "size": 10}
            ax.annotate(point["name"], (point["mb"], point["kl"]), (dx, dy), **at)
        sizes = [point["mb"] for point in points]
        span = max(sizes) - min(sizes)
        ax.set(xlim=(min(sizes) - 0.1 * span, max(sizes) + 0.95 * span), yscale="log", ylim=(0.1, 2.5))
        ax.set_title(group["title"], color=theme.text, size=11, loc="left")
        ax.set_xlabel("MB", color=theme.text)
        ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        ax.minorticks_off()
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.set_facecolor("none")
        ax.tick_params(colors=theme.quiet, labelcolor=theme.text)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(theme.quiet)
        ax.grid(axis="y", color=theme.quiet, alpha=0.25)
    axes[0].set_ylabel("KL to the float model, nats a token", color=theme.text)
    figure.tight_layout()
    return figure


def curve(theme: Theme, data: dict[str, Any]) -> Figure:
    """Bytes to the right, error upwards, a line for each tool: lower is better at every size."""
    figure, ax = plt.subplots(figsize=(10, 4.2))
    for line in data["lines"]:
        ours = line["tool"].startswith("pocketphi")
        colour, points = theme.ours if ours else theme.quiet, line["points"]
        face = "none" if line.get("hollow") else colour
        style = {"markersize": 7, "markeredgecolor": colour, "markerfacecolor": face, "linewidth": 1.3}
        ax.plot([p["mb"] for p in points], [p["kl"] for p in points], "o-", color=colour, **style)
        for point in points:
            if "name" in point:
                at = {"textcoords": "offset points", "va": "center", "color": theme.text, "size": 9.5}
                ax.annotate(point["name"], (point["mb"], point["kl"]), (8, 7), **at)
        x, y, side = line["label"]
        ax.text(x, y, line["tool"], color=colour, weight="bold", size=11, va="center", ha=side)
    ax.set(yscale="log")
    ax.set_yticks(data["ticks"], [f"{tick:g}" for tick in data["ticks"]])
    ax.minorticks_off()
    ax.set_xlabel("MB, whole files", color=theme.text)
    ax.set_ylabel("KL to the float model, nats a token", color=theme.text)
    ax.set_facecolor("none")
    ax.tick_params(colors=theme.quiet, labelcolor=theme.text)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(theme.quiet)
    ax.grid(axis="y", color=theme.quiet, alpha=0.25)
    figure.tight_layout()
    return figure


FIGURES: dict[str, Callable[[Theme, dict[str, Any]], Figure]] = {
    "pipeline": lambda theme, data: pipeline(theme),
    "speed": bars,
    "compile": bars,
    "quality": quality,
    "curve": curve,
}


def main(folder: Path = HERE) -> None:
    mpl.rcParams.update({"svg.hashsalt": "pocketphi", "font.family": "DejaVu Sans"})
    for name, draw in FIGURES.items():
        numbers = HERE / f"{name}.json"
        data = json.loads(numbers.read_text("utf-8")) if numbers.exists() else {}
        for shade, theme in THEMES.items():
            figure = draw(theme, data)
            path = folder / f"{name}-{shade}.svg"
            figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
