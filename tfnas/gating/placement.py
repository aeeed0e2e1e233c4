"""gate: makes a Supernet of a Keras model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError, brief
from tfnas.config import FLOOR, INITIAL_DROP, PUBLISHED_INITIAL_DROP
from tfnas.gating.gates import Gated
from tfnas.gating.importances import Importance, check_importance
from tfnas.gating.supernet import PublishedSupernet, Supernet
from tfnas.gating.unit_gates import NOISES
from tfnas.gating.unit_supernet import UnitSupernet, costs_of
from tfnas.graph.channels import Graph
from tfnas.graph.latencies import Device, Latencies
from tfnas.graph.units import UnitGraph
from tfnas.layers.base import Node, is_gate
from tfnas.layers.calls import copy_of

_NUMBERS = "num_examples ell2 temperature initial_drop floor scale_penalty".split()
# Arguments of one importance only, with their defaults.
_OF_IMPORTANCES: dict[str, dict[str, Any]] = {
    "gates": {"noise": "batch", "temperature": 0.2, "initial_drop": None},
    "curvature": {"iterative": True},
    "scale": {"floor": FLOOR, "scale_penalty": None},
}


def gate(
    model: keras.Model,
    *,
    num_examples: float | None = None,
    example: Any = None,
    ell2: float | None = None,
    parameters: float | None = None,
    multiply_adds: float | None = None,
    latency: float | None = None,
    device: str | Device | Latencies = "tensorflow",
    steps: int = 0,
    noise: str = "batch",
    streams: bool | None = None,
    channel_multiple: int = 1,
    importance: Importance = "gates",
    iterative: bool = True,
    floor: float = FLOOR,
    scale_penalty: float | None = None,
    temperature: float = 0.2,
    initial_drop: float | None = None,
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    group_size: int = 0,
    by_source: bool = True,
    prior: str = "uniform",
    gate_dense: bool = False,
    gate_pooling: bool = False,
    include: str | Sequence[str] = (),
) -> Supernet:
    """Makes a supernet of `model`.

    Give bounds on the network's cost (`parameters`, `multiply_adds`, `latency`; several hold together), or `ell2`.

    With bounds, what may vanish are channel units (method.md, section 9): a channel of every layer that writes it,
    together with all that reads it, so that the network found is the model with narrower layers. The expected costs are
    brought to the bounds by Lagrange multipliers.

    What decides between units is their importance (method.md, "Importances"): by default their gates, which `fit`
    trains with the weights. With the others `fit` trains the network without gates (with 'scale' under a penalty, with
    'curvature' dropping units on the way), and `supernet.posterior()` is what follows from the trained weights.

    With `ell2` the search is the published one. Every convolution has gates on its input channels, but the stem
    (convolutions that read the image itself) and the classifier (convolutions and dense layers with no other after
    them). As in the paper, all channels of a convolution's input share a drop probability, or if that input is a
    concatenation, all channels of one source; `group_size` and `by_source` change that.

    Args:
        model: Keras model of any kind, channels last. It is not changed. Nested models are flattened, and layers and
            subclassed models whose `call` is written with Keras layers and keras.ops are taken apart.
        num_examples: N, the number of distinct training examples: about 10 x the data set with strong augmentation.
            Needed with ell2 and importance 'gates'.
        example: inputs of a model that is not built yet, as arrays in the structure that it takes.
        ell2: squared prior length scale, > 0; larger gives a smaller network. A run of few epochs needs ten times the
            paper's, or gates that learn faster (`GatedOptimizer`). Too much of either drops everything.
        parameters: bound on the parameters, > 0: a share of the model's if at most 1, else their number. There is no
            weight term under bounds: give the optimizer a weight decay.
        multiply_adds: bound on the multiply-adds of one example, likewise.
        latency: bound on the seconds of one example, as a share of the model's in (0, 1). What each layer takes is
            measured on `device` now, which predicts what a network of some of its channels takes;
            `tfnas.meet_latency` then corrects the bound by what whole networks take.
        device: 'tensorflow', 'litert' (one thread; needs tfnas[formats]), or a function from a Keras model to the
            seconds of one forward pass, which may run it anywhere; or what was measured before.
        steps: with bounds, training steps in which the costs are to reach them; from 200 on. Needed with importance
            'gates', iterative 'curvature' and 'scale', whose default penalty follows from them.
        noise: with bounds, 'example': relaxed gates are drawn for each example, as in the paper; 'batch': one draw for
            the batch, on each replica, which costs next to nothing.
        streams: with bounds, whether the channels of streams, which a sum ties (such as a residual stream), may vanish
            too. None: only if the bounds are out of reach otherwise.
        channel_multiple: with bounds, candidates keep a multiple of this many units of each group, or all of them;
            the bounds must be within reach with it.
        importance: with bounds, 'gates', 'curvature', 'norm', 'scale', 'even', or a function from the `UnitGraph` to a
            score for each unit. A function is not saved with the supernet.
        iterative: with importance 'curvature', whether `fit` averages squared gradients and drops units on the way.
            False: it trains the network as it is, and `supernet.posterior(data=...)` takes the gradients at once.
        floor: with importance 'scale', share of each group's units that are kept first, in [0, 1]; 0: none, as in
            network slimming.
        scale_penalty: with importance 'scale', weight of the sum of the absolute scales of the units' normalizations in
            the loss, >= 0. None: 2 / steps, at least network slimming's 1e-4.
        temperature: of the relaxed gates, > 0.
        initial_drop: drop probability before the first step, in (0, 1). None: 0.02 with bounds, 0.1 with ell2.
        exclude: glob patterns of names: with bounds, of layers that keep all of their output channels; with ell2, of
            layers that are never gated.
        seed: of the gates' noise.
        group_size: with ell2, largest number of neighboring channels that share a drop probability; 1: each channel has
            its own; 0: all of a source share one, as in the paper.
        by_source: with ell2, whether groups end where a source of a concatenated input ends. False: such an input is
            one source, so that with a `group_size` of 0 the layer has one drop probability.
        prior: with ell2, 'uniform', or 'constant': an L2 term without the gates' probabilities, the paper's ablation:
            only the images then determine how much is dropped.
        gate_dense: with ell2, gate dense layers too, except the classifier.
        gate_pooling: with ell2, gate pooling and `Identity` layers too, so that these operations can be dropped; each
            such gate is penalized like a 1x1 convolution that passes its channel on, and costs nothing at inference.
        include: with ell2, glob patterns of names; if given, exactly the matching layers are gated, of whatever class.

    Returns:
        A `Supernet`, ready for `compile` and `fit`.

    Raises:
        UserError: for a layer that is not supported or cannot be gated, which it names; a pattern that matches nothing;
            nothing to gate; bounds together with ell2, or neither; an argument of the other kind of search; a bound
            that is out of reach, or on multiply-adds if the input has no fixed size.
        ValueError: for a number out of range.
    """
    if isinstance(model, Supernet) or any(is_gate(layer) for layer in getattr(model, "layers", ())):
        raise UserError(f"gate: a model without gates expected. Received: {model!r}")
    _check_types(locals())
    asked = {"parameters": parameters, "multiply_adds": multiply_adds, "latency": latency}
    bounds = {resource: bound for resource, bound in asked.items() if bound is not None}
    if (ell2 is None) == (not bounds):
        given = ", ".join(f"{k}={v}" for k, v in {"ell2": ell2, **bounds}.items() if v is not None) or "none of them"
        raise UserError(f"gate: ell2, or bounds (parameters, multiply_adds, latency) expected. Received: {given}")
    if bounds:
        defaults = {"group_size": 0, "by_source": True, "prior": "uniform", "gate_dense": False, "gate_pooling": False}
        _refuse(locals(), {**defaults, "include": ()}, "ell2")
        learning = _learning(
            importance, num_examples, steps, noise, temperature, initial_drop, iterative, floor, scale_penalty
        )
        return _with_units(model, example, bounds, device, streams, channel_multiple, exclude, seed, learning)
    of_bounds: dict[str, Any] = {"noise": "batch", "streams": None, "channel_multiple": 1, "steps": 0}
    of_bounds |= {"device": "tensorflow", "importance": "gates", "iterative": True, "floor": FLOOR}
    of_bounds["scale_penalty"] = None
    _refuse(locals(), of_bounds, "bounds")
    if num_examples is None:
        raise UserError("gate: num_examples, the number of training examples, expected with ell2. Received: None")
    initial_drop = PUBLISHED_INITIAL_DROP if initial_drop is None else initial_drop
    if group_size < 0:
        raise ValueError(f"gate: group_size must be at least 0. Received: group_size={group_size}")
    graph = Graph(model, example)
    gated = _chosen(graph, gate_dense, gate_pooling, _patterns(include), _patterns(exclude))

    def make(node: Node, layer: keras.Layer) -> keras.Layer:
        if node.name not in gated:
            return layer
        sizes = graph.group_sizes(node.name)
        return Gated(
            layer,
            group_sizes=_split(sizes if by_source else (sum(sizes),), group_size),
            temperature=temperature,
            initial_drop=initial_drop,
            # Distinct and stable noise for every layer, whatever the order of construction.
            seed=zlib.crc32(f"{seed}/{node.name}".encode()) % 2**31,
            name=node.name,
            dtype=layer.dtype_policy,
        )

    return PublishedSupernet(_copied(graph, make), num_examples, ell2 or 0.0, prior)


def _refuse(given: Mapping[str, Any], defaults: Mapping[str, Any], mode: str) -> None:
    """Raises UserError for an argument that differs from its default and belongs to the other mode."""
    for name, default in defaults.items():
        if given[name] != default and given[name] != []:
            other = "ell2" if mode == "bounds" else "bounds"
            raise UserError(
                f"gate: {name} belongs to a search with {mode}. Received: {name}={given[name]!r} and {other}"
            )


def _check_types(given: Mapping[str, Any]) -> None:
    """Raises UserError for an argument of `gate` that is of another type than expected, or belongs to none given."""

    def is_a(kind: Any, x: Any) -> bool:
        return isinstance(x, kind) and not isinstance(x, bool)

    for names, fits, expected in (
        (_NUMBERS, lambda x: x is None or (is_a(int | float | np.number, x) and not np.isnan(x)), "a number"),
        (("steps", "channel_multiple", "seed", "group_size"), lambda x: is_a(int | np.integer, x), "an integer"),
        (("streams",), lambda x: x is None or isinstance(x, bool), "True, False or None"),
        (
            ("exclude", "include"),
            lambda x: is_a(Sequence, x) and {*map(type, x)} <= {str},
            "a pattern, or a list of them",
        ),
    ):
        for name in names:
            if not fits(given[name]):
                raise UserError(f"gate: {name} must be {expected}. Received: {name}={given[name]!r}")
    if given["ell2"] is None and given["latency"] is None and given["device"] != "tensorflow":
        raise UserError(
            f"gate: device is where the latency is measured; bound it. Received: device={given['device']!r}"
        )


def _with_units(
    model: keras.Model,
    example: Any,
    bounds: dict[str, float],
    device: str | Device | Latencies,
    streams: bool | None,
    channel_multiple: int,
    exclude: str | Sequence[str],
    seed: int,
    learning: Mapping[str, Any],
) -> UnitSupernet:
    if channel_multiple < 1:
        raise ValueError(f"gate: channel_multiple must be at least 1. Received: channel_multiple={channel_multiple}")
    patterns = _patterns(exclude)
    plain = _copied(Graph(model, example), lambda node, layer: layer)
    latencies = None
    if "latency" in bounds:
        if not 0 < bounds["latency"] < 1:
            raise ValueError(f"gate: latency must be a share in (0, 1). Received: latency={bounds['latency']}")
        latencies = device if isinstance(device, Latencies) else Latencies.measure(Graph(plain), device)
    graph = _unit_graph(plain, patterns, streams, bounds, latencies, channel_multiple)
    form = costs_of(graph, latencies)
    most = form.absolute(bounds)
    try:
        form.check_reach(most, channel_multiple, bounds)
    except UserError as error:
        raise UserError(f"{error}{_what_else(graph)}") from None
    return UnitSupernet(
        graph, bounds=most, seed=seed % 2**31, latencies=latencies, channel_multiple=channel_multiple, **learning
    )


def _learning(
    importance: Importance,
    num_examples: float | None,
    steps: int,
    noise: str,
    temperature: float,
    initial_drop: float | None,
    iterative: bool,
    floor: float,
    scale_penalty: float | None,
) -> dict[str, Any]:
    """Arguments of `UnitSupernet` that say how the importance of units is learned, checked."""
    given = dict(locals())
    check_importance(importance, "gate")
    for other, defaults in _OF_IMPORTANCES.items():
        for name, default in defaults.items():
            if importance != other and given[name] != default:
                raise UserError(
                    f"gate: {name} belongs to importance {other!r}. Received: {name}={given[name]!r} and importance "
                    f"{brief(importance)}"
                )
    counts = importance == "gates" or (importance == "curvature" and iterative)
    if steps < 1 and (counts or (importance == "scale" and scale_penalty is None)):
        raise ValueError(f"gate: steps must be at least 1 with bounds. Received: steps={steps}")
    if importance == "gates" and num_examples is None:
        raise UserError(
            "gate: num_examples, the number of training examples, expected with importance 'gates'. Received: None"
        )
    if noise not in NOISES:
        raise UserError(f"gate: noise must be one of {', '.join(map(repr, NOISES))}. Received: {noise!r}")
    given["initial_drop"] = INITIAL_DROP if initial_drop is None else initial_drop
    for name, fits, expected in (
        ("temperature", temperature > 0, "greater than 0"),
        ("initial_drop", 0 < given["initial_drop"] < 1, "strictly in (0, 1)"),
        ("floor", 0 <= floor <= 1, "in [0, 1]"),
        ("scale_penalty", scale_penalty is None or scale_penalty >= 0, "at least 0"),
    ):
        if not fits:
            raise ValueError(f"gate: {name} must be {expected}. Received: {name}={given[name]}")
    return given


def _unit_graph(
    plain: keras.Model,
    exclude: tuple[str, ...],
    streams: bool | None,
    bounds: Mapping[str, float],
    latencies: Latencies | None,
    multiple: int,
) -> UnitGraph:
    """The graph; without a wish, one whose streams stay if all bounds are within reach of the other units."""
    if streams is not None:
        return UnitGraph(plain, exclude, streams)
    try:
        graph = UnitGraph(plain, exclude)
    except UserError:  # there are no others
        return UnitGraph(plain, exclude, streams=True)
    form = costs_of(graph, latencies)
    within = all(most >= form.least(resource, multiple) for resource, most in form.absolute(bounds).items())
    return graph if within else UnitGraph(plain, exclude, streams=True)


def _what_else(graph: UnitGraph) -> str:
    """Names what lets more channels of a graph go, and the kinds of layers that keep all of theirs."""
    more = [] if graph.streams else ["streams=True"]
    more += ["fewer layers in exclude"] if graph.exclude else []
    kinds = {
        "grouped convolutions" if node.has_kernel else type(node.inner).__name__: None
        for i, node in enumerate(graph.nodes)
        if not node.mixes and i not in graph.outputs and any(node.ties(j) is None for j in range(len(node.inputs)))
    }
    words = f"; to let more channels go: {', '.join(more)}" if more else ""
    return words + (f"; with all the channels that they read, these stay: {', '.join(kinds)}" if kinds else "")


def _copied(graph: Graph, wrap: Callable[[Node, keras.Layer], keras.Layer]) -> keras.Model:
    """A copy of a graph's model, flattened.

    Args:
        graph: of the model.
        wrap: from a node and the copy of its layer to the layer that is used.
    """
    copies: dict[int, keras.Layer] = {}  # by the layer's id, which may be called more than once
    used: dict[int, keras.Layer] = {}

    def make(node: Node) -> Any:
        if not isinstance(node.layer, keras.Layer):
            return node.layer
        key = id(node.layer) if node.shared else id(node)
        if key not in copies:
            copies[key] = copy_of(node.layer, node.name)
            used[key] = wrap(node, copies[key])
        return used[key]

    model = graph.rebuild(make)
    for node in graph.nodes:
        key = id(node.layer) if node.shared else id(node)
        if key in copies and getattr(node.layer, "weights", None):
            copy_weights(copies[key], node.layer.get_weights())
    return model


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

    included, excluded = graph.matching(include), graph.matching(exclude)
    chosen = set()
    for i, node in enumerate(graph.nodes):
        if i in excluded:
            continue
        grouped = node.has_kernel and not node.kernel_is_cut and not node.shared
        if (i in included if include else grouped) and not node.gateable:
            what = f"a grouped convolution ({node.inner.groups} groups)" if grouped else type(node.inner).__name__
            raise UserError(
                f"gate: layer '{node.name}' is {what} and cannot be gated: leave it out with exclude='{node.name}'"
            )
        if include:
            if i in included:
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
