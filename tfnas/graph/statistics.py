"""Moving statistics of a network's batch normalizations: whether they are of its training, and those of one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfnas.graph.channels import Graph
from tfnas.layers import BatchNormalization

NUM_EXAMPLES = 250  # whose statistics replace the moving ones
_STALE = 0.01  # share of the initial value in moving statistics from which they are recomputed


def initial_share(model: keras.Model, steps: int) -> float:
    """The share of their initial values in a network's moving statistics after so many steps.

    Args:
        model: a plain network. Frozen normalizations are ignored.
        steps: of its training.

    Returns:
        The largest `momentum ** steps` of its normalizations, in [0, 1]; 0 if there is none.
    """
    return max((layer.momentum**steps for layer in _norms(Graph(model))), default=0.0)


def settle_statistics(model: keras.Model, steps: int, images: Callable[[], Any]) -> float:
    """Recomputes a network's moving statistics if its training was too short for them.

    Args:
        model: a plain network, changed in place.
        steps: of its training.
        images: gives some hundred training examples, in the model's structure.

    Returns:
        The share of initial values that the statistics had, if they were recomputed, else 0.
    """
    left = initial_share(model, steps)
    if left < _STALE:
        return 0.0
    recompute_statistics(model, images())
    return left


def settled_in_words(left: float) -> str:
    """Says what `settle_statistics` has done, by the share that it has returned."""
    return f"recomputed the statistics of batch normalization: {left:.0%} of the moving ones were initial values"


def recompute_statistics(model: keras.Model, images: Any, graph: Graph | None = None) -> None:
    """Replaces the moving statistics of a network's normalizations by those of one batch.

    Args:
        model: changed in place, except for frozen normalizations.
        images: training images, augmented as in training, shape (batch, ..., channels).
        graph: of a network that is made of the same layers; None: of the model, which is plain then.
    """
    moving = set(_norms(graph or Graph(model)))
    momenta = {layer: layer.momentum for layer in _all_norms(model)}
    try:
        for layer in momenta:
            # The next call's statistics replace the moving ones. For a layer called with training=False, which Keras
            # would update as well, they change nothing.
            layer.momentum = 0.0 if layer in moving else 1.0
        model(images, training=True)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _norms(graph: Graph) -> list[keras.layers.BatchNormalization]:
    """Normalizations that are not frozen."""
    return [node.inner for node in graph.nodes if isinstance(node, BatchNormalization) and not node.frozen]


def _all_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
