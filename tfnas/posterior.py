"""Posterior: independent Bernoulli gates, one drop probability per group of input channels. No TensorFlow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from tfnas.architecture import Architecture
from tfnas.errors import UserError

_FORMAT = 1
_DECIDED = 0.05  # a gate below this, or above one minus this, counts as decided


@dataclasses.dataclass(frozen=True)
class LayerGates:
    """The gates of one layer.

    Attributes:
        name: the gated layer's Keras path.
        group_sizes: channels in each group, in order; they add up to the layer's K input channels.
        drop_probability: one p per group, in [0, 1].
        parameters_per_channel: kernel weights that one input channel carries.
    """

    name: str
    group_sizes: tuple[int, ...]
    drop_probability: tuple[float, ...]
    parameters_per_channel: int

    def __post_init__(self) -> None:
        if len(self.group_sizes) != len(self.drop_probability) or not self.group_sizes:
            raise ValueError(
                f"LayerGates '{self.name}': one drop probability per group expected. Received: "
                f"{len(self.group_sizes)} groups, {len(self.drop_probability)} probabilities"
            )
        if not all(0 <= p <= 1 for p in self.drop_probability):
            raise ValueError(
                f"LayerGates '{self.name}': drop probabilities must be in [0, 1]. Received: {self.drop_probability}"
            )

    @property
    def num_channels(self) -> int:
        """K, the layer's input channels."""
        return sum(self.group_sizes)

    @property
    def channel_drop(self) -> np.ndarray:
        """Drop probability of each channel, float64, shape (K,)."""
        return np.repeat(np.asarray(self.drop_probability, np.float64), self.group_sizes)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """q(phi) over the gates of all layers (method.md, section 1); weights are a point mass, kept by the supernet.

    >>> q = Posterior((LayerGates("conv", (2, 1), (0.0, 1.0), 9),))
    >>> q.sample(1, seed=0)[0]["conv"].tolist()
    [True, True, False]
    >>> q.expected_parameters()
    18.0
    """

    layers: tuple[LayerGates, ...]

    def sample(self, num_candidates: int, seed: int, first: int = 0) -> list[Architecture]:
        """Hard masks, eps ~ Bernoulli(1 - p): one architecture per candidate.

        Candidate i is a function of (seed, i) alone, so that any range of candidates can be drawn again, anywhere.

        Args:
            num_candidates: how many to draw.
            seed: non-negative integer.
            first: index of the first candidate drawn.
        """
        return [self._from_uniform(np.random.default_rng([seed, first + i])) for i in range(num_candidates)]

    def _from_uniform(self, rng: np.random.Generator) -> Architecture:
        return Architecture({g.name: rng.random(g.num_channels) >= g.channel_drop for g in self.layers})

    def mode(self) -> Architecture:
        """The most probable architecture: every channel with p < 1/2."""
        return Architecture({g.name: g.channel_drop < 0.5 for g in self.layers})

    def log_prob(self, architecture: Architecture) -> float:
        """Natural logarithm of an architecture's probability; -inf where p = 0 or 1 forbids it."""
        if set(architecture) != {g.name for g in self.layers}:
            raise ValueError("Posterior.log_prob: the architecture's layers are not this posterior's")
        total = 0.0
        with np.errstate(divide="ignore"):
            for g in self.layers:
                keep = architecture[g.name]
                total += float(np.sum(np.where(keep, np.log1p(-g.channel_drop), np.log(g.channel_drop))))
        return total

    def entropy(self) -> float:
        """Entropy of all gates in nats: -sum p log p + (1 - p) log(1 - p)."""
        total = 0.0
        for g in self.layers:
            # x log x -> 0 at 0: the clip moves no other value.
            p = np.clip(g.channel_drop, 1e-300, 1.0)
            keep = np.clip(1.0 - g.channel_drop, 1e-300, 1.0)
            total -= float(np.sum(p * np.log(p) + keep * np.log(keep)))
        return total

    def expected_parameters(self) -> float:
        """Expected kernel weights kept in the gated layers: sum over channels of (1 - p) x weights per channel."""
        return float(sum((1 - g.channel_drop).sum() * g.parameters_per_channel for g in self.layers))

    def total_parameters(self) -> int:
        """Kernel weights of the gated layers with every channel kept."""
        return sum(g.num_channels * g.parameters_per_channel for g in self.layers)

    def expected_kept(self) -> float:
        """Expected share of the gated layers' kernel weights that are kept, in [0, 1]."""
        return self.expected_parameters() / self.total_parameters()

    def decided(self) -> tuple[int, int]:
        """(groups whose p is below 0.05 or above 0.95, all groups)."""
        p = np.concatenate([g.drop_probability for g in self.layers])
        return int(((p < _DECIDED) | (p > 1 - _DECIDED)).sum()), p.size

    def tilt(self, *, parameters: float) -> Posterior:
        """The same posterior with one constant added to all keep logits, so that `parameters` are expected.

        Exponential tilting: among distributions with that expected size it is, when all channels cost alike, the
        nearest to this one in KL divergence.

        Args:
            parameters: expected kernel weights kept in the gated layers, strictly between 0 and the total.

        Raises:
            UserError: if no shift reaches that size.
        """
        total = self.total_parameters()
        if not 0 < parameters < total:
            raise UserError(f"tilt: parameters must lie strictly between 0 and {total}. Received: {parameters}")

        low, high = -60.0, 60.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self._shifted(middle).expected_parameters() < parameters else (low, middle)
        return self._shifted((low + high) / 2)

    def _shifted(self, shift: float) -> Posterior:
        def move(p: float) -> float:
            p = min(max(p, 1e-12), 1 - 1e-12)
            return float(1 / (1 + np.exp(np.log1p(-p) - np.log(p) + shift)))

        return Posterior(
            tuple(
                dataclasses.replace(g, drop_probability=tuple(move(p) for p in g.drop_probability)) for g in self.layers
            )
        )

    def to_json(self) -> str:
        """JSON text that `from_json` reads back exactly."""
        return json.dumps({"format": _FORMAT, "layers": [dataclasses.asdict(g) for g in self.layers]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Posterior:
        """Inverse of `to_json`. Raises UserError for text that is truncated or something else."""
        try:
            layers: Sequence[dict] = json.loads(text)["layers"]
            return cls(
                tuple(
                    LayerGates(
                        name=g["name"],
                        group_sizes=tuple(g["group_sizes"]),
                        drop_probability=tuple(g["drop_probability"]),
                        parameters_per_channel=g["parameters_per_channel"],
                    )
                    for g in layers
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"posterior: not the JSON of a Posterior ({error})") from None

    @classmethod
    def from_reference(cls, text: str, like: Posterior) -> Posterior:
        """The gates of `like` with published drop probabilities.

        Args:
            text: JSON with `drop_probability`, from layer names to one p per source in the order of concatenation. A
                published name matches a layer's with its dots written as underscores ('denseblock1.denselayer1.conv1').
            like: of the super-network that the names belong to, for example `gate(densenet121(), ...).posterior()`.

        Raises:
            UserError: if the text is something else, or its layers or their sources are not those of `like`.
        """
        try:
            published = {name.replace(".", "_"): tuple(p) for name, p in json.loads(text)["drop_probability"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"posterior: not the JSON of a published posterior ({error})") from None
        odd = sorted(set(published) ^ {g.name for g in like.layers})
        if odd:
            where = "published" if odd[0] in published else "super-network's"
            raise UserError(f"posterior: layers differ, first '{odd[0]}', which is only among the {where}")
        for g in like.layers:
            if len(published[g.name]) != len(g.group_sizes):
                raise UserError(
                    f"posterior: '{g.name}' has {len(g.group_sizes)} sources. Received: {len(published[g.name])} values"
                )
        try:
            return cls(tuple(dataclasses.replace(g, drop_probability=published[g.name]) for g in like.layers))
        except (ValueError, TypeError) as error:
            raise UserError(f"posterior: {error}") from None
