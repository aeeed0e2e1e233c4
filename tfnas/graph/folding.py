"""Weights of a network, and the constants that dropped operations leave under an architecture.

A channel that is constant (see `channels`) needs no tensor: its value is known from the weights, and is folded into
what reads it: the bias of a kernel that does not pad, a bias that depends on the position of one that does, the offset
of a sum. `cutting.subnets` builds a Keras model with these constants, `ranking.engine` feeds its programs with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfnas.graph.channels import Flow, Graph
from tfnas.layers.records import Folded, Weights

_VARIABLES = "kernel bias depthwise_kernel pointwise_kernel gamma beta scale moving_mean moving_variance".split()


def weights_of(graph: Graph, most: Any = np.float64) -> Weights:
    """Values of every layer's kernels, biases and normalization, by node and by the variable's Keras name.

    In float32, or in float64 where a variable and `most` are so.
    """
    found = {}
    for node in graph.nodes:
        variables: dict[str, Any] = {name: getattr(node.inner, name, None) for name in _VARIABLES}
        found[node.name] = {
            name: np.asarray(v).astype(most if v.dtype == "float64" else np.float32)
            for name, v in variables.items()
            if hasattr(v, "assign")
        }
    return found


class Folding:
    """Constants of one architecture.

    Args:
        flow: its channels.
        weights: of `weights_of`, for `flow.graph`.

    Attributes:
        constants: for each node the value of every channel that is constant, shape (C,); elsewhere 0.
        dtype: of the constants: float64 if any of the weights is so, else float32.
    """

    def __init__(self, flow: Flow, weights: Weights):
        self.flow = flow
        self.weights = weights
        arrays = [array for values in weights.values() for array in values.values()]
        self.dtype = np.result_type(np.float32, *{array.dtype for array in arrays})
        self.constants: list[np.ndarray] = []
        for i, node in enumerate(flow.graph.nodes):
            unknown = ~(flow.explicit[i] | flow.zero[i])
            constants = np.zeros(node.num_channels, self.dtype)
            if unknown.any():
                constants = np.where(unknown, np.asarray(node.constants(self.at(i)), self.dtype), constants)
            self.constants.append(constants)

    def at(self, i: int) -> Folded:
        """The channels, weights and constants at node `i`, by which its family answers."""
        constants = [self.constants[j] for j in self.flow.graph.nodes[i].inputs]
        return Folded(**vars(self.flow.at(i)), weights=self.weights, constants=constants)
