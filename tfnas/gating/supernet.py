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
from tfnas.search_space.bernoulli import DECIDED
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import COUNTED, Posterior

PRIORS = ("uniform", *COUNTED, "constant")


@dataclasses.dataclass(frozen=True)
class Target:
    """A target size: `share` of the full network's `resource`, to be reached within `steps` training steps."""

    resource: str
    share: float
    steps: int


@keras.saving.register_keras_serializable("tfnas")
class Supernet(keras.Model):
    """A gated network whose training loss is the ELBO (method.md, section 2); made by `gate`.

    Attributes:
        network: the functional model whose layers are `Gated`.
        gated_layers: its `Gated` layers by name, in the graph's order.
        prior_factors: factor of ell2 for each of them; empty if it is the same for all.
        target: the target size; None with ell2.
        multiplier: Lagrange multiplier of the expected cost, float32 scalar, not trainable; None with ell2.
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
        # Not the global policy: under a mixed one the regularizer's kernels would be rounded before they are squared.
        # Nor are inputs cast to it: the network casts them, to float64 where it computes in that.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.network = network
        self.ell2 = ell2
        self.num_examples = num_examples
        self.prior = prior
        self.graph = Graph(network)
        self.gated_layers = {n.name: n.layer for n in self.graph.nodes if isinstance(n.layer, Gated)}
        self.prior_factors = self._factors() if prior in COUNTED else ()
        self.target: Any = target
        self.multiplier: Any = None
        if target:
            self._add_constraint()
        self.built = True

    @property
    def output_names(self) -> list[str]:
        """Names of the gated model's outputs, by which `compile` accepts losses and metrics."""
        return self.network.output_names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The network's output; in training, also adds the regularizer to the losses.

        If `training` is None, the value with which each layer was called applies, as in any Keras model.
        """
        if training:
            self.add_loss(self.regularizer())
            return self.network(inputs, training=True)
        with hard_gates():
            return self.network(inputs, training=training)

    def regularizer(self) -> tf.Tensor:
        """Regularizer of the ELBO, to be added to the mean negative log likelihood, float32 scalar."""
        if self.ell2 is None:
            logits = [layer.channel_logits() for layer in self.gated_layers.values()]
            return elbo.lagrangian(
                logits, self.expected_share(), tf.convert_to_tensor(self.multiplier), self.num_examples
            )
        pairs = [(layer.channel_logits(), layer.squared_norms()) for layer in self.gated_layers.values()]
        correlated = self.prior != "constant"
        return elbo.regularizer(pairs, self.ell2, self.num_examples, self.prior_factors, correlated)

    def expected_share(self) -> tf.Tensor:
        """Expected share of the full network's cost, in the target's resource, float32 scalar; with a target only.

        Linear in the drop probabilities, with the costs of the last `update_costs`.
        """
        logits = [layer.channel_logits() for layer in self.gated_layers.values()]
        costs = tf.unstack(tf.convert_to_tensor(self._marginal_costs))
        return elbo.expected_share(logits, costs, tf.convert_to_tensor(self._offset))

    def update_costs(self) -> None:
        """Recomputes the cost of a channel of each layer: what dropping its next channel saves now.

        Dropping an input channel saves the weights that read it, of outputs that are still kept; and if nothing else
        reads it, also the weights that produce it. Both change as layers become narrower, so call this at intervals
        during training, as `UpdateCosts` does; only with a target. The costs are differences from the most probable
        network; until the next call the expected cost is linear in the drop probabilities, and exact at that network.
        """
        resource = self.target.resource
        full = count(self.graph, resource)

        def share(keep: dict[str, np.ndarray]) -> float:
            return count(self.graph, resource, keep) / full

        drops = {g.name: g.channel_drop for g in self.posterior().layers}
        kept = {name: drop < 0.5 for name, drop in drops.items()}
        now = share(kept)
        costs = []
        for name, drop in drops.items():
            # The next channel to be dropped, or if none is left, the next to be kept.
            other = kept[name].copy()
            k = np.argmax(np.where(other, drop, -1.0)) if other.any() else np.argmin(drop)
            other[k] = not other[k]
            costs.append(abs(now - share({**kept, name: other})))
        counts = [mask.sum() for mask in kept.values()]
        before = self.expected_share()
        self._marginal_costs.assign(costs)
        self._offset.assign(now - np.dot(costs, counts))
        # The moving average follows the gates, not the change of the costs.
        self.average_share.assign(tf.convert_to_tensor(self.average_share) + self.expected_share() - before)

    def update_costs_if_due(self, step: int) -> None:
        """Calls `update_costs` at intervals: 40 times within `target.steps`, and as often after that.

        `UpdateCosts` does so in `fit`; in a training loop of your own, call this before every step. Without a target it
        does nothing.

        Args:
            step: number of the step that follows, from 0.
        """
        if self.target and step % max(1, self.target.steps // 40) == 0:
            self.update_costs()

    def _add_constraint(self) -> None:
        """Creates the state from which the multiplier is updated, for the full network."""
        # Updated within a replica, where all replicas hold the same value.
        options = {"trainable": False, "autocast": False, "aggregation": "only_first_replica", "initializer": "zeros"}
        numbers = {"dtype": "float32", **options}
        self._marginal_costs = self.add_weight(shape=(len(self.gated_layers),), name="marginal_costs", **numbers)
        self._offset = self.add_weight(shape=(), name="offset", **numbers)
        self.average_share = self.add_weight(shape=(), name="average_share", **numbers)
        first = {**numbers, "initializer": keras.initializers.Constant(elbo.INITIAL_MULTIPLIER)}
        self.multiplier = self.add_weight(shape=(), name="multiplier", **first)
        self.steps_taken = self.add_weight(shape=(), dtype="int32", name="steps_taken", **options)
        self.update_costs()

    def _factors(self) -> tuple[float, ...]:
        costs = [self._cost_per_channel(name, self.prior) for name in self.gated_layers]
        layers = self.gated_layers.values()
        channels = [sum(layer.group_sizes) for layer in layers]
        return elbo.cost_factors(channels, [layer.unit_gain_norm() for layer in layers], costs)

    def _cost_per_channel(self, name: str, resource: str) -> int:
        cost = (
            self.gated_layers[name].parameters_per_channel() if resource == "parameters" else self._multiply_adds(name)
        )
        if cost is None:
            raise UserError(f"gate: '{resource}' needs a model whose input has a fixed size; layer '{name}' has none")
        return cost

    def _multiply_adds(self, name: str) -> int | None:
        """Multiply-adds of one input channel of a gated layer; None if the image size is not fixed."""
        positions = self.graph.nodes[self.graph.index[name]].positions
        return None if positions is None else self.gated_layers[name].parameters_per_channel() * positions

    def compile(self, optimizer: Any = "sgd", loss: Any = None, *, auto_scale_loss: bool = True, **kwargs: Any) -> None:
        """Like `keras.Model.compile`, with any Keras optimizer; the gates' logits are never decayed.

        Args:
            optimizer: of the weights, or its name; the gates are stepped as by `optimizers.GatedOptimizer`, with its
                defaults unless it is one: by Adam with a target size, else as the weights are.
            loss: as for Keras.
            auto_scale_loss: scale the loss if a layer computes in float16, as Keras does for a model of that policy.
            kwargs: further arguments of `keras.Model.compile`.
        """
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is not None:
            optimizer = optimizers.gated(optimizer, **({} if self.target else {"gate_learning_rate": 1.0}))
            scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            # Keras would look at the supernet's own policy, which is float32 because of the regularizers.
            if auto_scale_loss and not scaled and self._computes_in_float16():
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer=optimizer, loss=loss, auto_scale_loss=False, **kwargs)
        for made in (getattr(optimizer, "inner_optimizer", optimizer), optimizer):
            if made is not None and not made.built:
                made.build(self.trainable_variables)

    def _computes_in_float16(self) -> bool:
        return any(layer.compute_dtype == "float16" for layer in self.network._flatten_layers())

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a reloaded model as before; Keras needs this because `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config), auto_scale_loss=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One training step on the ELBO, called by `fit`."""
        logs = super().train_step(data)
        self.update_multiplier()
        return {**logs, **self.progress()}

    def progress(self) -> dict[str, tf.Tensor]:
        """Values that `fit` reports about the gates, float32 scalars.

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
        costs = [w / total for w in weights]
        kept = elbo.expected_share([layer.channel_logits() for layer in layers], costs, 0.0)
        return {"kept": kept, "undecided": undecided}

    def update_multiplier(self) -> None:
        """Updates the Lagrange multiplier towards the target size; call this after every step of an optimizer.

        `fit` does so. Without a target it does nothing.
        """
        if self.target:
            step, share = tf.convert_to_tensor(self.steps_taken) + 1, self.expected_share()
            scheduled = elbo.scheduled_share(self.target.share, step, self.target.steps)
            average = elbo.moving_average(tf.convert_to_tensor(self.average_share), share)
            multiplier = tf.convert_to_tensor(self.multiplier)
            self.multiplier.assign(elbo.next_multiplier(multiplier, share, average, scheduled))
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
        """Mean drop probability of each source of each gated layer's input: few numbers, even with many groups."""
        means = {}
        for name, gates in zip(self.gated_layers, self.posterior().layers, strict=True):
            ends = np.cumsum(self.graph.group_sizes(name))[:-1]
            means[name] = [float(part.mean()) for part in np.split(gates.channel_drop, ends)]
        return means

    def set_architecture(self, architecture: Architecture) -> None:
        """Sets `architecture`'s hard masks for inference. Raises UserError if its layers are not this supernet's."""
        if set(architecture) != set(self.gated_layers):
            differing = sorted(set(architecture) ^ set(self.gated_layers))
            where = "the architecture" if differing[0] in architecture else "the supernet"
            raise UserError(
                "architecture: the layers of this supernet expected. Received: others; "
                f"'{differing[0]}' is only in {where}"
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
