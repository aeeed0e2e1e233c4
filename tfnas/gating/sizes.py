"""The size that a search is steered to: what a channel costs, counted anew on the way, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.terminal import print_line, warn
from tfnas.gating.supernet import Supernet, Target
from tfnas.graph.costs import count

_MISSED = 0.05  # of the share asked for: a difference that is worth a warning
_SAMPLES = 20  # of the posterior, by which its size is told


class Reprice(keras.callbacks.Callback):
    """Calls `Supernet.reprice` 40 times until the target is to be reached, and as often thereafter.

    When `fit` starts it says so if it has fewer steps than `gate` was told of, and when it ends, what size was asked
    for and what is reached: as a warning from 5 % on, above and below.

    >>> supernet.fit(images, labels, callbacks=[tfnas.Reprice()])  # doctest: +SKIP
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Before the first step of `fit`."""
        target, steps = self.model.target, self.params.get("steps")
        if not (target and steps):
            return
        left, coming = target.steps - _steps_taken(self.model), steps * self.params["epochs"]
        if coming < left:
            warn(
                f"gate: fit takes {coming:,} steps, of {left:,} that are left of gate(steps={target.steps}): the gates "
                f"will not be at the size asked for at its end. For this fit alone, gate with steps={coming}"
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Before some of the steps."""
        self.model.reprice_if_due(_steps_taken(self.model))

    def on_train_end(self, logs: Any = None) -> None:
        """After the last step of `fit`."""
        advice = ": train longer, and say so to gate(steps=...), or with a larger GatedOptimizer(gate_step=...)"
        tell(self.model, "gate: ", advice)


def _steps_taken(supernet: Supernet) -> int:
    return int(tf.convert_to_tensor(supernet.steps_taken))  # of several replicas a variable is no number itself


@dataclasses.dataclass(frozen=True)
class Reached:
    """The size that a search has come to, beside the one asked for.

    Attributes:
        target: what was asked for.
        share: of the full network's cost that is left, as it is counted: the mean of 20 samples of the posterior.
    """

    target: Target
    share: float

    @property
    def above(self) -> bool:
        """Whether it is larger by 5 % or more of what was asked for."""
        return self.share >= (1 + _MISSED) * self.target.share

    @property
    def missed(self) -> bool:
        """Whether it is larger or smaller by that much."""
        return self.above or self.share <= (1 - _MISSED) * self.target.share

    def __str__(self) -> str:
        """In one line."""
        resource = self.target.resource.replace("_", "-")
        line = f"{self.target.share:.1%} of the {resource} were asked for, {self.share:.1%} are reached"
        if self.above:
            return f"{line}; the gates had too few steps, and what is cut down to that size is less well chosen"
        if self.missed:
            return f"{line}; what is made up to that size keeps channels that the gates would drop"
        return line


def reached(supernet: Supernet) -> Reached | None:
    """What the gates have come to; None without a size that was asked for."""
    if not supernet.target:
        return None
    resource, graph = supernet.target.resource, supernet.graph
    samples = supernet.posterior().sample(_SAMPLES, seed=0)
    mean = np.mean([count(graph, resource, sample) for sample in samples])
    return Reached(supernet.target, float(mean / count(graph, resource)))


def tell(supernet: Supernet, begins: str, advice: str) -> None:
    """Prints what size was asked for and what is reached; a warning where they differ.

    Args:
        supernet: after its last step; without a size that was asked for, nothing is printed.
        begins: what the line begins with.
        advice: what it ends with if the size is above the one asked for.
    """
    if size := reached(supernet):
        line = f"{begins}{size}{advice if size.above else ''}"
        if size.missed:
            warn(line)
        else:
            print_line(line)
