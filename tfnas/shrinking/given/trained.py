"""Whether a model's weights are trained, found out by a permutation test on held-out examples.

The statistic is the mean loss. Under the null hypothesis that outputs are independent of labels, it is as likely as any
under a permutation of the labels. Random weights tell inputs apart too, and may correlate with labels by chance. So the
model must also be clearly better than its labels shuffled, and better than its own mean output for all examples.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.data.inputs import Examples
from tfnas.gating.supernet import Supernet
from tfnas.ranking.losses import LOSS, Criterion

_EXAMPLES, _BATCH, _PERMUTATIONS = 500, 100, 99
_SIGNIFICANT = 0.01
_BETTER = 0.9  # of the loss with shuffled labels, at most


def looks_trained(supernet: Supernet, held_out: Examples, seed: int = 0) -> bool:
    """Whether the network's held-out loss shows that its weights are trained for these labels.

    Args:
        supernet: compiled; its network with all gates open is looked at.
        held_out: labeled examples, of which 500 are used.
        seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    some = held_out.take(np.sort(rng.permutation(len(held_out))[:_EXAMPLES]))
    criterion = Criterion(supernet, some, "shrink")
    count = len(some)
    parts = [_outputs(supernet, some.take(slice(i, i + _BATCH))) for i in range(0, count, _BATCH)]
    outputs = [np.concatenate(parts) for parts in zip(*parts, strict=True)]

    def loss(outputs: list[np.ndarray]) -> float:
        found = criterion.traced([tf.convert_to_tensor(x) for x in outputs], some.labels, some.weights)
        return float(tf.reduce_mean(found[LOSS]))

    own = loss(outputs)
    # Permuted outputs are permuted labels, whatever their structure.
    shuffled = np.array(
        [loss([x[order] for x in outputs]) for order in (rng.permutation(count) for _ in range(_PERMUTATIONS))]
    )
    constant = loss([np.broadcast_to(x.mean(0, keepdims=True), x.shape) for x in outputs])
    mean = shuffled.mean()
    p = (1 + (shuffled <= own).sum()) / (1 + _PERMUTATIONS)
    return bool(p <= _SIGNIFICANT and own < constant and own <= mean - (1 - _BETTER) * abs(mean))


def _outputs(supernet: Supernet, examples: Examples) -> list[np.ndarray]:
    inputs: Any = keras.tree.pack_sequence_as(supernet.network.input, examples.inputs)
    return [np.asarray(tf.cast(x, tf.float32)) for x in keras.tree.flatten(supernet(inputs, training=False))]
