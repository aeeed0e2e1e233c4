"""The report's section on the network found: what is kept of each layer, and how the search came to it."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnas.common import markup
from tfnas.runs.sampled import Epoch
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior

_MOST_UNDECIDED = 10  # gates listed
_SETTLED = 0.05  # of a drop probability: what it may still move by
_FEW = 3  # layers named in a sentence


def section(
    architecture: Architecture,
    reads: Mapping[str, int | None],
    posterior: Posterior | UnitPosterior,
    history: Sequence[Epoch],
) -> dict[str, Any]:
    """Returns the contents of network.html.

    Args:
        architecture: of the network found.
        reads: how many input channels each gated layer reads in it, or how many units each group has; None if the layer
            or the group is not there.
        posterior: of the search.
        history: the records of history.jsonl; none if nothing was trained.
    """
    decided, gates = posterior.decided()
    undecided = posterior.undecided()
    by_layer = collections.Counter(name for name, _, _ in undecided)
    learned = bool(history and history[0].drop_probability)  # else the importance follows from the weights
    settled = _settled(architecture, history) if learned else {}
    early = [name for name in settled if settled[name] <= max(1, len(history) // 4)]
    late = sorted((name for name in settled if name not in early), key=lambda name: -settled[name])
    return {
        "kept": architecture.kept,
        "total": architecture.total,
        "removed": sum(reads[name] is None for name in architecture),
        "decided": decided,
        "gates": gates,
        "settled_within": _SETTLED,
        "num_early": len(early),
        "late": [(name, settled[name]) for name in late[:_FEW]],
        "most_open": by_layer.most_common(_FEW),
        "layers": [
            (
                False,
                (
                    g.name,
                    f"{architecture[g.name].sum()} of {g.num_channels}",
                    settled.get(g.name, "-"),
                    by_layer[g.name],
                    len(g.group_sizes),
                ),
            )
            for g in posterior.layers
        ],
        "units": isinstance(posterior, UnitPosterior),
        "bars": widths(architecture, posterior) if isinstance(posterior, UnitPosterior) else _bars(architecture, reads),
        "learned": learned,
        "heat": _heat(history) if learned else "",
        "trained": bool(history),
        "course": _course(history, history[0].decided is not None) if history else "",
        "num_undecided": len(undecided),
        "undecided": [(False, (name, group, f"{p:.3f}")) for name, group, p in undecided[:_MOST_UNDECIDED]],
    }


def _settled(architecture: Architecture, history: Sequence[Epoch]) -> dict[str, int]:
    """The epoch from which on each layer's mean drop probability stays where it ends."""
    epochs = {}
    for name in architecture:
        course = np.array([epoch.drop_probability[name] for epoch in history])
        moving = np.flatnonzero((np.abs(course - course[-1]) > _SETTLED).any(axis=1))
        epochs[name] = history[moving[-1] + 1 if len(moving) else 0].epoch
    return epochs


def _bars(architecture: Architecture, reads: Mapping[str, int | None]) -> str:
    names = list(architecture)
    return markup.bars(
        names,
        [(reads[name] or 0) / architecture[name].size for name in names],
        ["removed" if reads[name] is None else f"{reads[name]} of {architecture[name].size}" for name in names],
        "input channels read, %",
        "Share of its input channels that every gated operation reads in the network found",
        [i for i, (name, after) in enumerate(zip(names, names[1:], strict=False)) if _block(name) != _block(after)],
    )


def widths(architecture: Architecture, posterior: UnitPosterior | None = None) -> str:
    """Draws each group's width before and after, and what the posterior expects of it, if there is one."""
    names = list(architecture)
    sizes = [architecture[name].size for name in names]
    drop = [g.channel_drop for g in posterior.layers] if posterior else []
    expected = [float((1 - p).sum()) for p in drop]
    deviations = [float(np.sqrt((p * (1 - p)).sum())) for p in drop]
    found = [int(architecture[name].sum()) for name in names]

    def draw(axes: Any) -> None:
        axes.barh(names, sizes, color=markup.GRAY, alpha=0.2, label="before")
        axes.barh(names, found, color=markup.BLUE, label="found")
        if drop:
            points: Any = {"fmt": "o", "markersize": 3, "color": markup.ORANGE}
            axes.errorbar(expected, names, xerr=deviations, label="posterior, mean and sd", **points)
        for y, (size, width) in enumerate(zip(sizes, found, strict=True)):
            words = f"{width} of {size}" if width else "removed"
            axes.annotate(
                words,
                (size, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="black" if width else markup.RED,
            )
        axes.invert_yaxis()
        axes.tick_params("y", labelsize=8)
        axes.set(xlabel="channels", xlim=(0, 1.25 * max(sizes)))
        markup.legend(axes.figure, axes)

    caption = "Width of every group of channel units: before" + (
        ", in the network found, and as the posterior expects it" if drop else " and in the network found"
    )
    return markup.plot(draw, (markup.WIDTH, 1.0 + 0.24 * len(names)), caption)


def _block(name: str) -> str:
    return name.rsplit("_", 2)[0]


def _heat(history: Sequence[Epoch]) -> str:
    sources = [
        (f"{name}{f'[{i}]' if len(p) > 1 else ''}", name, i)
        for name, p in history[0].drop_probability.items()
        for i in range(len(p))
    ]
    over_time = np.array([[epoch.drop_probability[name][i] for epoch in history] for _, name, i in sources])

    def draw(axes: Any) -> None:
        extent = (0.5, len(history) + 0.5, len(sources) - 0.5, -0.5)
        image = axes.imshow(
            over_time, aspect="auto", cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest"
        )
        axes.set(xlabel="epoch of search", yticks=range(len(sources)), yticklabels=[label for label, _, _ in sources])
        axes.tick_params("y", labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.figure.colorbar(image, ax=axes, shrink=min(1, 2 / axes.figure.get_figheight()), anchor=(0, 1))

    caption = "Mean drop probability over the search, by layer or group"
    return markup.plot(draw, (markup.WIDTH, 0.6 + 0.24 * len(sources)), caption)


def _course(history: Sequence[Epoch], gates: bool) -> str:
    epochs = [epoch.epoch for epoch in history]
    kept = [100 * epoch.kept for epoch in history]

    def draw(axes: Any) -> None:
        axes.plot(
            epochs, [epoch.loss for epoch in history], color=markup.ORANGE, label="loss (ELBO)" if gates else "loss"
        )
        axes.set(xlabel="epoch of search", ylabel="loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        other = axes.twinx()
        other.plot(epochs, kept, color=markup.BLUE, label="expected share kept, %" if gates else "share trained, %")
        other.set(ylabel="kept, %", ylim=(0, 103))
        other.spines["top"].set_visible(False)
        markup.legend(axes.figure, axes, other)

    return markup.plot(draw, (markup.WIDTH, 2.8), "Loss and expected share of what is kept over the search")
