"""A search with a target size: the callback that updates the cost of a channel, and the size that was reached."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.terminal import print_line, warn
from tfnas.gating.supernet import Supernet, Target
from tfnas.graph.costs import count

_MISSED = 0.05  # relative difference from the target that is worth a warning
_SAMPLES = 20  # of the posterior, of which the size is the mean


class UpdateCosts(keras.callbacks.Callback):
    """Calls `Supernet.update_costs` at intervals: 40 times within the steps given to `gate`, and as often after that.

    It warns when `fit` starts with fewer steps than were given to `gate`. When `fit` ends it reports the target size
    and the size reached, as a warning if they differ by 5 % or more.

    >>> supernet.fit(images, labels, callbacks=[tfnas.UpdateCosts()])  # doctest: +SKIP
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Warns if `fit` has fewer steps than are left until the target is due."""
        target, steps = self.model.target, self.params.get("steps")
        if not (target and steps):
            return
        left, coming = target.steps - _steps_taken(self.model), steps * self.params["epochs"]
        if coming < left:
            warn(
                f"gate: fit takes {coming:,} steps, of {left:,} that are left of gate(steps={target.steps}): the gates "
                f"will not have reached the target size. For this fit alone, gate with steps={coming}"
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Updates the costs before some of the steps."""
        self.model.update_costs_if_due(_steps_taken(self.model))

    def on_train_end(self, logs: Any = None) -> None:
        """Reports the size reached."""
        advice = ": train longer, with gate(steps=...) raised to match, or with a larger GatedOptimizer(gate_step=...)"
        report(self.model, "gate: ", advice)


def _steps_taken(supernet: Supernet) -> int:
    return int(tf.convert_to_tensor(supernet.steps_taken))  # with several replicas the variable itself is not a number


@dataclasses.dataclass(frozen=True)
class SizeReached:
    """The size that a search has reached, compared with its target.

    Attributes:
        target: of the search.
        share: of the full network's cost: the mean of 20 samples of the posterior, counted exactly.
    """

    target: Target
    share: float

    @property
    def above(self) -> bool:
        """Whether the size exceeds the target by 5 % of it or more."""
        return self.share >= (1 + _MISSED) * self.target.share

    @property
    def missed(self) -> bool:
        """Whether the size differs from the target by 5 % of it or more."""
        return self.above or self.share <= (1 - _MISSED) * self.target.share

    def __str__(self) -> str:
        """One line for the terminal."""
        resource = self.target.resource.replace("_", "-")
        line = f"target size {self.target.share:.1%} of the {resource}, reached {self.share:.1%}"
        if self.above:
            return f"{line}; the gates had too few steps, so cutting down to the target chooses channels less well"
        if self.missed:
            return f"{line}; filling up to the target keeps channels that the gates would drop"
        return line


def size_reached(supernet: Supernet) -> SizeReached | None:
    """The size that the gates have reached; None without a target."""
    if not supernet.target:
        return None
    resource, graph = supernet.target.resource, supernet.graph
    samples = supernet.posterior().sample(_SAMPLES, seed=0)
    mean = np.mean([count(graph, resource, sample) for sample in samples])
    return SizeReached(supernet.target, float(mean / count(graph, resource)))


def report(supernet: Supernet, prefix: str, advice: str) -> None:
    """Prints the target size and the size reached, as a warning if they differ by 5 % or more.

    Args:
        supernet: after its last step; without a target, nothing is printed.
        prefix: of the line.
        advice: end of the line if the size is above the target.
    """
    if size := size_reached(supernet):
        line = f"{prefix}{size}{advice if size.above else ''}"
        if size.missed:
            warn(line)
        else:
            print_line(line)
