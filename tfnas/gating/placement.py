"""gate: makes a Supernet of a Keras model, with gates on the layers whose input channels may be dropped."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.config import DEFAULT_GATES
from tfnas.gating.gates import Gated
from tfnas.gating.supernet import Supernet, Target
from tfnas.graph import reach
from tfnas.graph.channels import Graph
from tfnas.layers.base import Node


def gate(
    model: keras.Model,
    *,
    num_examples: float,
    ell2: float | None = None,
    parameters: float | None = None,
    multiply_adds: float | None = None,
    steps: int = 0,
    group_size: int | None = None,
    by_source: bool = True,
    temperature: float = 0.2,
    initial_drop: float | None = None,
    prior: str = "uniform",
    gate_dense: bool = False,
    gate_pooling: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    check_share: bool = True,
) -> Supernet:
    """Makes a supernet of `model`, with a gate on the input channels of every convolution that may be narrowed.

    The stem (convolutions that read the image itself) and the classifier (convolutions and dense layers with no other
    after them) are not gated. In the paper, all channels of a convolution's input share a drop probability, or if that
    input is a concatenation, all channels of one source; `group_size` and `by_source` change that.

    Give exactly one of `ell2`, `parameters` and `multiply_adds`. `ell2` is the published prior. The others bound the
    expected size of the network, by a Lagrange multiplier that is updated during training.

    Args:
        model: functional or Sequential Keras model, channels last. It is not changed. Nested models are flattened.
        num_examples: N, the number of distinct training examples: about 10 x the data set with strong augmentation.
        ell2: squared prior length scale, > 0; larger gives a smaller network. A run of few epochs needs ten times the
            paper's, or gates that learn faster (`GatedOptimizer`). Too much of either drops everything.
        parameters: target size as a share of the model's parameters, in (0, 1). There is then no weight term: give the
            optimizer a weight decay.
        multiply_adds: or as a share of its multiply-adds.
        steps: training steps in which the target size is to be reached.
        group_size: largest number of neighboring channels that share a drop probability; 1: each channel has its own;
            0: all of a source share one. None: 1 with a target size, 0 with ell2, as in the paper.
        by_source: whether groups end where a source of a concatenated input ends. False: such an input is one source,
            so that with a `group_size` of 0 the layer has one drop probability.
        temperature: of the relaxed gates, > 0.
        initial_drop: drop probability before the first step, in (0, 1). None: 0.02 with a target size, 0.1 with
            ell2.
        prior: 'uniform': the same ell2 for every weight. 'parameters' or 'multiply_adds': each layer's is ell2 times a
            factor, so that at initialization a channel is penalized in proportion to its kernel weights, or its
            multiply-adds, and all channels together as much as with 'uniform' (`elbo.cost_factors`). 'constant': an L2
            term without the gates' probabilities, the paper's ablation: only the images then determine how much is
            dropped.
        gate_dense: gate dense layers too, except the classifier.
        gate_pooling: gate pooling and `Identity` layers too, so that these operations can be dropped; each such gate is
            penalized like a 1x1 convolution that passes its channel on, and costs nothing at inference.
        include: glob patterns of names; if given, exactly the matching layers are gated, of whatever class.
        exclude: glob patterns of names that are never gated.
        seed: of the gates' noise.
        check_share: whether to check that these gates can reach the target size, and to warn if that is uncertain.
            False: it is known already.

    Returns:
        A `Supernet`, ready for `compile` and `fit`.

    Raises:
        UserError: for a layer that is not supported or cannot be gated, which it names; a pattern that matches nothing;
            no layer to gate; an unknown prior, or 'multiply_adds' if the input has no fixed size; a target size that
            these gates cannot reach; not exactly one of ell2, parameters and multiply_adds.
        ValueError: for a number out of range.
    """
    target = _target(ell2, {"parameters": parameters, "multiply_adds": multiply_adds}, steps)
    default_drop, default_size = DEFAULT_GATES["target" if target else "paper"]
    initial_drop = default_drop if initial_drop is None else initial_drop
    group_size = default_size if group_size is None else group_size
    if group_size < 0:
        raise ValueError(f"gate: group_size must be at least 0. Received: group_size={group_size}")
    graph = Graph(model)
    include, exclude = _patterns(include), _patterns(exclude)
    gated = _chosen(graph, gate_dense, gate_pooling, include, exclude)
    if target and check_share:
        others = {} if include else _more(graph, gate_dense, gate_pooling, exclude)
        reach.check(graph, gated, target.resource, target.share, others)
    layers: dict[str, keras.Layer] = {}

    def make(node: Node) -> Any:
        if not isinstance(node.layer, keras.Layer):
            return node.layer
        layer = node.layer.__class__.from_config({**node.layer.get_config(), "name": node.name})
        if node.name in gated:
            sizes = graph.group_sizes(node.name)
            layer = Gated(
                layer,
                group_sizes=_split(sizes if by_source else (sum(sizes),), group_size),
                temperature=temperature,
                initial_drop=initial_drop,
                # Distinct and stable noise for every layer, whatever the order of construction.
                seed=zlib.crc32(f"{seed}/{node.name}".encode()) % 2**31,
                name=node.name,
                dtype=layer.dtype_policy,
            )
        layers[node.name] = layer
        return layer

    network = graph.rebuild(make)
    for node in graph.nodes:
        if getattr(node.layer, "weights", None):
            built = layers[node.name]
            copy_weights(built.layer if isinstance(built, Gated) else built, node.layer.get_weights())
    return Supernet(network, num_examples, ell2, target, prior=prior)


def _target(ell2: float | None, shares: dict[str, float | None], steps: int) -> Target | None:
    given = {resource: share for resource, share in shares.items() if share is not None}
    if (ell2 is not None) + len(given) != 1:
        received = ", ".join(f"{k}={v}" for k, v in {"ell2": ell2, **given}.items() if v is not None) or "none of them"
        raise UserError(f"gate: exactly one of ell2, parameters and multiply_adds expected. Received: {received}")
    for resource, share in given.items():
        if not 0 < share < 1:
            raise ValueError(f"gate: {resource} must be strictly in (0, 1). Received: {resource}={share}")
        if steps < 1:
            raise ValueError(f"gate: steps must be at least 1 with {resource}. Received: steps={steps}")
        return Target(resource, share, steps)
    return None


def copy_weights(layer: keras.Layer, weights: Sequence[np.ndarray]) -> None:
    """Calls `layer.set_weights`, and updates what `Normalization` derives from its weights."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _split(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Splits groups of channels into groups of at most `most`, if that is not 0; the last of each may be smaller."""
    if not most:
        return tuple(sizes)
    return tuple(min(most, size - first) for size in sizes for first in range(0, size, most))


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _chosen(
    graph: Graph, gate_dense: bool, gate_pooling: bool, include: tuple[str, ...], exclude: tuple[str, ...]
) -> set[str]:
    """Names of the nodes to gate."""

    def matches(node: Node, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(node.name, pattern) for pattern in patterns)

    for pattern in (*include, *exclude):
        if not any(matches(node, (pattern,)) for node in graph.nodes):
            raise UserError(
                f"gate: no layer matches {pattern!r}; there are {', '.join(n.name for n in graph.nodes[:8])}, ..."
            )
    chosen = set()
    for i, node in enumerate(graph.nodes):
        if matches(node, exclude):
            continue
        grouped = node.has_kernel and not node.kernel_is_cut
        if (matches(node, include) if include else grouped) and not node.gateable:
            what = f"a grouped convolution ({node.inner.groups} groups)" if grouped else type(node.inner).__name__
            raise UserError(
                f"gate: layer '{node.name}' is {what} and cannot be gated: leave it out with exclude='{node.name}'"
            )
        if include:
            if matches(node, include):
                chosen.add(node.name)
        elif node.gateable and not node.kernel_is_cut:
            if gate_pooling and graph.sees_kernel[i]:
                chosen.add(node.name)
        elif node.gateable:
            wanted = gate_dense or not isinstance(node.inner, keras.layers.Dense)
            if wanted and graph.sees_kernel[i] and graph.feeds_kernel[i]:
                chosen.add(node.name)
    if not chosen:
        raise UserError(
            f"gate: model '{graph.model.name}' has no convolution to gate besides its stem and classifier; "
            "gate_dense=True or include='NAME' gates more"
        )
    return chosen


def _more(graph: Graph, gate_dense: bool, gate_pooling: bool, exclude: tuple[str, ...]) -> dict[str, set[str]]:
    """Names of the nodes that other options would gate, by those options."""
    options = {
        "gate_dense=True": (True, gate_pooling),
        "gate_pooling=True": (gate_dense, True),
        "gate_dense=True and gate_pooling=True": (True, True),
    }
    now = (gate_dense, gate_pooling)
    return {words: _chosen(graph, *option, (), exclude) for words, option in options.items() if option != now}
