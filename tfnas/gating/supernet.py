"""Supernet: a Keras model whose layers are gated, trained on the ELBO."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.config import FIRST_GATES
from tfnas.gating import elbo, optimizers, saving
from tfnas.gating.gates import Gated, hard_gates
from tfnas.graph import reach
from tfnas.graph.channels import Graph, Node, deep, is_gateable
from tfnas.graph.costs import count
from tfnas.layers.kinds import CHOICES, CUT_KINDS
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import DECIDED, RESOURCES, LayerGates, Posterior

PRIORS = ("uniform", *RESOURCES, "constant")


@dataclasses.dataclass(frozen=True)
class Target:
    """What the expected cost is steered to: `share` of the full network's `resource`, within `steps` training steps."""

    resource: str
    share: float
    steps: int


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
    """A super-network of `model`: its weights, and a gate on the input channels of every convolution it may narrow.

    Left alone are the stem (convolutions with no other before them: their input is the picture) and the classifier
    (convolutions and dense layers with no other after them). All channels of a convolution's input share a drop
    probability in the paper, and where that input is a concatenation, those of one source; `group_size` and `by_source`
    say otherwise.

    The prior is the published one, of `ell2`, or prices the gates until the network is expected to have the size asked
    for: exactly one of `ell2`, `parameters` and `multiply_adds` is given.

    Args:
        model: functional or Sequential Keras model, channels last. Not changed. Nested models are taken apart.
        num_examples: N, training examples seen as distinct: about 10 x the data set under strong augmentation.
        ell2: squared prior length scale, > 0; larger gives a smaller network. A run of few epochs wants ten times the
            paper's, or gates that learn faster (`GatedOptimizer`). Too much of either drops everything.
        parameters: share of the model's parameters to arrive at, in (0, 1). There is then no weight term: give the
            optimizer a weight decay.
        multiply_adds: or share of its multiply-adds.
        steps: with one of these two, training steps by which to be there.
        group_size: at most so many neighbouring channels share a drop probability; 1: each channel has its own. 0: all
            of a source's do. None: 1 with a share, 0 with ell2, as in the paper.
        by_source: where a layer's input is a concatenation, groups end where a source ends. False: it is taken as one
            source, so that with a `group_size` of 0 the layer has one drop probability.
        temperature: of the relaxed gates, > 0.
        initial_drop: drop probability before the first step, in (0, 1). None: 0.02 with a share, 0.1 with ell2.
        prior: 'uniform': ell2 is that of every weight. 'parameters' or 'multiply_adds': each layer's is ell2 times a
            factor, such that at initialisation a channel is pressed in proportion to the kernel weights, or to the
            multiply-adds, that it costs, and all channels together as hard as with 'uniform' (`elbo.cost_factors`).
            'constant': an L2 term that no gate's probability is part of, the paper's ablation: nothing but the images
            then says how much is dropped.
        gate_dense: gate dense layers too, but for the classifier.
        gate_pooling: gate pooling and `Identity` layers too, so that these operations can be dropped; each such gate is
            priced as a 1x1 convolution that passes its channel on, and costs nothing at inference.
        include: glob patterns of names; if given, exactly the layers that match are gated, whatever they are.
        exclude: glob patterns of names never gated.
        seed: of the gates' noise.
        check_share: whether to look if these gates can leave a network of the share asked for, and to warn if that is
            not sure. False: it is known already.

    Returns:
        A `Supernet`, ready for `compile` and `fit`.

    Raises:
        UserError: naming the layer that the graph cannot follow or that cannot be gated; a pattern that matches
            nothing; no layer to gate; an unknown prior, or 'multiply_adds' where the input has no fixed size; a share
            that no network has which these gates leave; not exactly one of ell2, parameters and multiply_adds.
        ValueError: for a number out of range.
    """
    target = _target(ell2, {"parameters": parameters, "multiply_adds": multiply_adds}, steps)
    first_drop, first_size = FIRST_GATES["target" if target else "paper"]
    initial_drop = first_drop if initial_drop is None else initial_drop
    group_size = first_size if group_size is None else group_size
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
            twin = layers[node.name]
            copy_weights(twin.layer if isinstance(twin, Gated) else twin, node.layer.get_weights())
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
    """`layer.set_weights`, and what `Normalization` derives from its weights made anew."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _split(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Groups of channels cut into ones of at most `most`, if that is not 0; the last of each may be smaller."""
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
        grouped = node.kind == "opaque" and getattr(node.inner, "groups", 1) > 1 and hasattr(node.inner, "kernel_size")
        if (matches(node, include) if include else grouped) and not is_gateable(node):
            what = f"a grouped convolution ({node.inner.groups} groups)" if grouped else type(node.inner).__name__
            raise UserError(
                f"gate: layer '{node.name}' is {what} and cannot be gated: leave it whole with exclude='{node.name}'"
            )
        if include:
            if matches(node, include):
                chosen.add(node.name)
        elif isinstance(node.inner, CHOICES):
            if gate_pooling and graph.sees_kernel[i]:
                chosen.add(node.name)
        elif node.kind in CUT_KINDS:
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
    """Names of what would be gated with other options, by the words that say which."""
    options = {
        "gate_dense=True": (True, gate_pooling),
        "gate_pooling=True": (gate_dense, True),
        "gate_dense=True and gate_pooling=True": (True, True),
    }
    now = (gate_dense, gate_pooling)
    return {words: _chosen(graph, *option, (), exclude) for words, option in options.items() if option != now}


@keras.saving.register_keras_serializable("tfnas")
class Supernet(keras.Model):
    """A gated network whose training loss is the ELBO (method.md, section 2); made by `gate`.

    Attributes:
        network: the functional model whose layers are `Gated`.
        gated_layers: its `Gated` layers by name, in the graph's order.
        prior_factors: of ell2, one for each of them; empty where it is the same for all.
        target: what the price is steered to; None with ell2.
        price: lambda, which `target` is reached by, float32 scalar, not trainable; None with ell2.
    """

    def __init__(
        self,
        network: keras.Model,
        num_examples: float,
        ell2: float | None = None,
        target: Target | None = None,
        prior: str = "uniform",
        **kwargs: Any,
    ):
        for name, value in (("ell2", ell2), ("num_examples", num_examples)):
            if value is not None and not value > 0:
                raise ValueError(f"Supernet: {name} must be greater than 0. Received: {name}={value}")
        if prior not in PRIORS:
            raise UserError(f"gate: prior must be one of {', '.join(map(repr, PRIORS))}. Received: {prior!r}")
        # Not the global policy: under a mixed one the regulariser's kernels would be rounded before they are squared.
        # Nor are inputs cast to it: the network casts them, to float64 where it computes in that.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.network = network
        self.ell2 = ell2
        self.num_examples = num_examples
        self.prior = prior
        self.graph = Graph(network)
        self.gated_layers = {n.name: n.layer for n in self.graph.nodes if isinstance(n.layer, Gated)}
        self.prior_factors = self._factors() if prior in RESOURCES else ()
        self.target: Any = target
        self.price: Any = None
        if target:
            self._set_prices(target)
        self.built = True

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, by which `compile` takes losses and metrics, as those of the model that was gated."""
        return self.network.output_names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The network's output; in training, also adds the regulariser to the losses.

        As any Keras model it honours, where `training` is None, what its layers were called with.
        """
        if training:
            self.add_loss(self.regulariser())
            return self.network(inputs, training=True)
        with hard_gates():
            return self.network(inputs, training=training)

    def regulariser(self) -> tf.Tensor:
        """What the ELBO adds to the mean negative log likelihood, float32 scalar."""
        if self.ell2 is None:
            logits = [layer.channel_logits() for layer in self.gated_layers.values()]
            return elbo.priced(logits, self.expected_share(), tf.convert_to_tensor(self.price), self.num_examples)
        pairs = [(layer.channel_logits(), layer.squared_norms()) for layer in self.gated_layers.values()]
        correlated = self.prior != "constant"
        return elbo.regulariser(pairs, self.ell2, self.num_examples, self.prior_factors, correlated)

    def expected_share(self) -> tf.Tensor:
        """Expected share of the full network's cost, in the target's resource, float32 scalar; with a target only.

        Linear in the probabilities, as `reprice` last found it.
        """
        logits = [layer.channel_logits() for layer in self.gated_layers.values()]
        prices = tf.unstack(tf.convert_to_tensor(self._marginal_shares))
        return elbo.expected_share(logits, prices, tf.convert_to_tensor(self._offset))

    def reprice(self) -> None:
        """Takes for each layer's price what its next channel would save of the network that is the most probable now.

        Dropping an input channel saves the weights that read it, but only those whose outputs are still there; and if
        nobody else reads it, the weights that make it too. Both change as layers are narrowed, so this is to be called
        now and then while training, as `Reprice` does; with a target only. Between two calls the expected cost is that
        network's plus these prices for what is kept of the others, minus for what may be dropped of its own.
        """
        resource = self.target.resource
        full = count(self.graph, resource)

        def share(keep: dict[str, np.ndarray]) -> float:
            return count(self.graph, resource, keep) / full

        drops = {g.name: g.channel_drop for g in self.posterior().layers}
        kept = {name: drop < 0.5 for name, drop in drops.items()}
        now = share(kept)
        prices = []
        for name, drop in drops.items():
            # The next to go, or where nothing is left the next to come.
            other = kept[name].copy()
            k = np.argmax(np.where(other, drop, -1.0)) if other.any() else np.argmin(drop)
            other[k] = not other[k]
            prices.append(abs(now - share({**kept, name: other})))
        counts = [mask.sum() for mask in kept.values()]
        before = self.expected_share()
        self._marginal_shares.assign(prices)
        self._offset.assign(now - np.dot(prices, counts))
        # The average is to tell how the share moves, not how it is counted.
        self.average_share.assign(tf.convert_to_tensor(self.average_share) + self.expected_share() - before)

    def reprice_if_due(self, step: int) -> None:
        """Calls `reprice` 40 times until the target is to be reached, and as often thereafter; without one never.

        `Reprice` does so in `fit`; in a training loop of your own it is to be called before every step.

        Args:
            step: number of the step that follows, from 0.
        """
        if self.target and step % max(1, self.target.steps // 40) == 0:
            self.reprice()

    def _set_prices(self, target: Target) -> None:
        """The state that the price is steered by, for a network that is whole."""
        # Updated within a replica, where all replicas hold the same value.
        options = {"trainable": False, "autocast": False, "aggregation": "only_first_replica", "initializer": "zeros"}
        numbers = {"dtype": "float32", **options}
        self._marginal_shares = self.add_weight(shape=(len(self.gated_layers),), name="marginal_shares", **numbers)
        self._offset = self.add_weight(shape=(), name="offset", **numbers)
        self.average_share = self.add_weight(shape=(), name="average_share", **numbers)
        first = {**numbers, "initializer": keras.initializers.Constant(elbo.FIRST_PRICE)}
        self.price = self.add_weight(shape=(), name="price", **first)
        self.steps_taken = self.add_weight(shape=(), dtype="int32", name="steps_taken", **options)
        self.reprice()

    def _factors(self) -> tuple[float, ...]:
        costs = [self._cost_per_channel(name, self.prior) for name in self.gated_layers]
        layers = self.gated_layers.values()
        channels = [sum(layer.group_sizes) for layer in layers]
        return elbo.cost_factors(channels, [layer.unit_gain_norm() for layer in layers], costs)

    def _cost_per_channel(self, name: str, resource: str) -> int:
        price = (
            self.gated_layers[name].parameters_per_channel() if resource == "parameters" else self._multiply_adds(name)
        )
        if price is None:
            raise UserError(f"gate: '{resource}' needs a model whose input has a fixed size; layer '{name}' has none")
        return price

    def _multiply_adds(self, name: str) -> int | None:
        """Of one input channel of a gated layer; None where the image size is not fixed."""
        positions = self.graph.positions(self.graph.nodes[self.graph.index[name]])
        return None if positions is None else self.gated_layers[name].parameters_per_channel() * positions

    def compile(self, optimizer: Any = "sgd", loss: Any = None, *, auto_scale_loss: bool = True, **kwargs: Any) -> None:
        """As `keras.Model.compile`, with any Keras optimizer, which never decays the gates' logits.

        Args:
            optimizer: of the weights, or its name; the gates are stepped as `optimizers.GatedOptimizer` says, with its
                defaults unless it is one: by Adam where the search is steered to a size, else as the weights are.
            loss: as for Keras.
            auto_scale_loss: scale the loss if a layer computes in float16, as Keras does for a model of that policy.
            kwargs: Keras's others.
        """
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is not None:
            optimizer = optimizers.gated(optimizer, **({} if self.target else {"gate_learning_rate": 1.0}))
            scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            # Keras would ask the supernet's own policy, which is float32 for the regularisers' sake.
            if auto_scale_loss and not scaled and self._computes_in_float16():
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer=optimizer, loss=loss, auto_scale_loss=False, **kwargs)
        for made in (getattr(optimizer, "inner_optimizer", optimizer), optimizer):
            if made is not None and not made.built:
                made.build(self.trainable_variables)

    def _computes_in_float16(self) -> bool:
        return any(layer.compute_dtype == "float16" for layer in self.network._flatten_layers())

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a reloaded model as it was; needed because `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config), auto_scale_loss=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on the ELBO, as Keras's `fit` takes it."""
        logs = super().train_step(data)
        self.steer()
        return {**logs, **self.progress()}

    def progress(self) -> dict[str, tf.Tensor]:
        """What `fit` shows of the gates, float32 scalars.

        `parameters` or `multiply_adds`, the resource of the target: `expected_share`; or with ell2, `kept`: the
        expected share of the gated layers' kernel weights. `undecided`: how many gates have a drop probability from
        0.05 to 0.95.
        """
        layers = self.gated_layers.values()
        p = tf.sigmoid(tf.concat([tf.convert_to_tensor(layer.drop_logit) for layer in layers], axis=0))
        undecided = tf.reduce_sum(tf.cast((p >= DECIDED) & (p <= 1 - DECIDED), tf.float32))
        if self.target:
            return {self.target.resource: self.expected_share(), "undecided": undecided}
        weights = [layer.parameters_per_channel() for layer in layers]
        total = sum(w * sum(layer.group_sizes) for w, layer in zip(weights, layers, strict=True))
        prices = [w / total for w in weights]
        kept = elbo.expected_share([layer.channel_logits() for layer in layers], prices, 0.0)
        return {"kept": kept, "undecided": undecided}

    def steer(self) -> None:
        """Moves the price towards the size asked for; to be called after every step of an optimizer.

        `fit` does so. With ell2 there is no price, and nothing happens.
        """
        if self.target:
            step, share = tf.convert_to_tensor(self.steps_taken) + 1, self.expected_share()
            aim = elbo.goal(self.target.share, step, self.target.steps)
            average = elbo.lagging(tf.convert_to_tensor(self.average_share), share)
            self.price.assign(elbo.next_price(tf.convert_to_tensor(self.price), share, average, aim))
            self.average_share.assign(average)
            self.steps_taken.assign(step)

    def posterior(self) -> Posterior:
        """The gates' present drop probabilities."""

        def gates(name: str, layer: Gated) -> LayerGates:
            return LayerGates(
                name=name,
                group_sizes=layer.group_sizes,
                drop_probability=tuple(layer.drop_probability().tolist()),
                parameters_per_channel=layer.parameters_per_channel(),
                multiply_adds_per_channel=self._multiply_adds(name),
            )

        return Posterior(tuple(gates(name, layer) for name, layer in self.gated_layers.items()))

    def source_drop(self) -> dict[str, list[float]]:
        """Mean drop probability of every source of every gated layer's input: few numbers, however fine the gates."""
        means = {}
        for name, gates in zip(self.gated_layers, self.posterior().layers, strict=True):
            ends = np.cumsum(self.graph.group_sizes(name))[:-1]
            means[name] = [float(part.mean()) for part in np.split(gates.channel_drop, ends)]
        return means

    def set_architecture(self, architecture: Architecture) -> None:
        """Makes inference use `architecture`'s hard masks. Raises UserError if its layers are not this supernet's."""
        if set(architecture) != set(self.gated_layers):
            odd = sorted(set(architecture) ^ set(self.gated_layers))
            where = "the architecture" if odd[0] in architecture else "the supernet"
            raise UserError(
                f"architecture: the layers of this supernet expected. Received: others; '{odd[0]}' is only in {where}"
            )
        for name, layer in self.gated_layers.items():
            if architecture[name].shape != layer.mask.shape:
                raise UserError(
                    f"architecture: '{name}': a mask of {layer.mask.shape[0]} input channels expected. "
                    f"Received: {architecture[name].size}"
                )
            layer.mask.assign(architecture[name].astype("float32"))

    def architecture(self) -> Architecture:
        """The hard masks in use."""
        return Architecture({name: np.asarray(layer.mask) > 0.5 for name, layer in self.gated_layers.items()})

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same model."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "num_examples": self.num_examples,
            "ell2": self.ell2,
            "target": self.target and dataclasses.asdict(self.target),
            "prior": self.prior,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Supernet:
        """Inverse of `get_config`."""
        with deep():
            network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        target = config["target"] and Target(**config["target"])
        return cls(**{**config, "network": network, "target": target})


def load(path: str | os.PathLike[str]) -> Supernet:
    """The supernet that a search wrote, as WORKDIR/search/supernet.keras, or that `save` did; compiled as it was.

    Args:
        path: of the file.

    Raises:
        UserError: naming the file, if it is missing, damaged, unsafe, or holds no supernet.
    """
    return saving.load(pathlib.Path(path), Supernet)
