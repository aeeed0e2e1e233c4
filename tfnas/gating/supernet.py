"""Supernet: a Keras model whose layers are gated, trained on the ELBO."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.gating import elbo, optimizers
from tfnas.gating.gates import Gated, hard_gates
from tfnas.graph.channels import Graph, deep
from tfnas.graph.costs import count
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import DECIDED, RESOURCES, LayerGates, Posterior

PRIORS = ("uniform", *RESOURCES, "constant")


@dataclasses.dataclass(frozen=True)
class Target:
    """What the expected cost is steered to: `share` of the full network's `resource`, within `steps` training steps."""

    resource: str
    share: float
    steps: int


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
