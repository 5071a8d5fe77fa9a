"""A picture of the comparison: records a second, a panel a workload, the floor as a line."""

from pathlib import Path

# One colour an engine in every panel, told apart by colour-blind readers too.
_COLOURS = ("#9aa5b1", "#56b4e9", "#0072b2", "#e69f00", "#d55e00")


def draw_bars(
    bars: dict[str, dict[str, float]], floors: dict[str, float | None], path: Path
) -> None:
    """Write an SVG. bars: workload -> engine -> records a second, and floors in the same."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    engines = list(dict.fromkeys(name for values in bars.values() for name in values))
    colours = dict(zip(engines, _COLOURS, strict=False))
    figure, axes = pyplot.subplots(
        1, len(bars), figsize=(2.6 * len(bars) + 0.6, 3.4), squeeze=False
    )
    for axis, (workload, values) in zip(axes[0], bars.items(), strict=True):
        places = range(len(values))
        drawn = axis.bar(places, list(values.values()), color=[colours[name] for name in values])
        axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
        if (floor := floors[workload]) is not None:
            axis.axhline(floor, color="#333333", linewidth=1, linestyle="--")
        axis.set_title(workload, fontsize=10)
        axis.set_xticks([])
        axis.tick_params(labelsize=8)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("records/s", fontsize=9)
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, color=colours[name]) for name in engines]
    handles.append(Line2D([0], [0], color="#333333", linewidth=1, linestyle="--"))
    figure.legend(
        handles,
        [*engines, "floor, bfloat16"],
        loc="lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    # The same runs give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "vlmflow"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
