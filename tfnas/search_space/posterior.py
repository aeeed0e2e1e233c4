"""Posterior: independent Bernoulli gates, one drop probability per group of input channels. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from markupsafe import Markup

from tfnas.common import markup
from tfnas.common.errors import UserError, brief
from tfnas.common.schema import Share, integer, list_of, mapping_of, read, to_json
from tfnas.search_space.architecture import MOST_CHANNELS, Architecture
from tfnas.search_space.bernoulli import Bernoulli
from tfnas.search_space.layer_gates import LayerGates

_FORMAT = 1
COUNTED = ("parameters", "multiply_adds")  # resources that are sums over input channels


@dataclasses.dataclass(frozen=True, repr=False)
class Posterior(Bernoulli):
    """q(phi) over the gates of all layers (method.md, section 1); the weights are a point mass, held by the supernet.

    >>> q = Posterior((LayerGates("conv", (2, 1), (0.0, 1.0), 9),))
    >>> q.sample(1, seed=0)[0]["conv"].tolist()
    [True, True, False]
    >>> q.expected_parameters()
    18.0
    """

    layers: tuple[LayerGates, ...]

    def __repr__(self) -> str:
        share = self.expected_cost() / self.total_cost()
        return (
            f"<Posterior of {sum(layer.num_channels for layer in self.layers):,} channels in {len(self.layers):,} "
            f"layers: {markup.percent(share)} of the kernel weights expected>"
        )

    def _repr_html_(self) -> Markup:
        decided, groups = self.decided()
        lead = (
            f"{len(self.layers)} gated layers, {self.total_parameters():,} kernel weights, "
            f"{self.expected_parameters():,.0f} of them expected to be kept; {decided:,} of {groups:,} groups of "
            "channels are decided (p below 0.05 or above 0.95)."
        )
        return self._drawn(lead)

    def sample(self, num_candidates: int, seed: int = 0, first: int = 0) -> list[Architecture]:
        """Draws hard masks, eps ~ Bernoulli(1 - p): one architecture per candidate.

        Candidate i depends only on (seed, i), so that any range of candidates can be drawn again, anywhere.

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

    def _per_channel(self, resource: str) -> list[int]:
        """Cost of one input channel of each layer. Raises UserError if it is unknown."""
        if resource not in COUNTED:
            known = ", ".join(f"'{known}'" for known in COUNTED)
            raise UserError(f"posterior: one of {known} expected. Received: {resource!r}")
        costs = [getattr(g, f"{resource}_per_channel") for g in self.layers]
        if None in costs:
            raise UserError(
                f"posterior: {resource} are not known, because the model's input has no fixed size: build it with one, "
                "or take parameters"
            )
        return costs

    def cost_of(self, architecture: Architecture, resource: str = "parameters") -> int:
        """Cost of one architecture, of which `expected_cost` is the mean: the sum of c over the channels kept.

        Args:
            architecture: of this posterior's layers.
            resource: 'parameters' or 'multiply_adds'.

        Raises:
            UserError: for another network's architecture, or an unknown resource.
        """
        self._check_layers(architecture, "cost_of")
        return _total({g.name: architecture[g.name] for g in self.layers}, self._per_channel(resource))

    def expected_cost(self, resource: str = "parameters") -> float:
        """E[cost kept] = sum over channels of (1 - p) c, of the gated layers' kernels, each with all of its outputs.

        Args:
            resource: 'parameters' or 'multiply_adds'.

        Raises:
            UserError: for an unknown resource.
        """
        return float(
            sum((1 - g.channel_drop).sum() * c for g, c in zip(self.layers, self._per_channel(resource), strict=True))
        )

    def cost_deviation(self, resource: str = "parameters") -> float:
        """Standard deviation of the cost: the root of the sum over channels of p (1 - p) c^2."""
        costs = self._per_channel(resource)
        variances = [
            (g.channel_drop * (1 - g.channel_drop)).sum() * c**2 for g, c in zip(self.layers, costs, strict=True)
        ]
        return float(np.sqrt(sum(variances)))

    def total_cost(self, resource: str = "parameters") -> int:
        """Cost with every channel kept."""
        return sum(g.num_channels * c for g, c in zip(self.layers, self._per_channel(resource), strict=True))

    def expected_parameters(self) -> float:
        """Expected kernel weights kept in the gated layers."""
        return self.expected_cost("parameters")

    def total_parameters(self) -> int:
        """Kernel weights of the gated layers with every channel kept."""
        return self.total_cost("parameters")

    def expected_kept(self) -> float:
        """Expected share of the gated layers' kernel weights that are kept, in [0, 1]."""
        return self.expected_parameters() / self.total_parameters()

    def tilt(self, *, parameters: float | None = None, multiply_adds: float | None = None) -> Posterior:
        """Conditions the posterior on an expected cost: every keep logit is shifted by lambda times the cost.

        Exponential tilting: of all distributions over architectures with that expected cost, q(a) exp(-lambda cost(a))
        is the nearest to this one in KL divergence. The cost is a sum over channels, so that the gates stay
        independent. Lambda is found by bisection. A gate without a cost (on pooling) is unchanged.

        The cost is that of the gated layers' kernels, each with all of its outputs, as in `expected_cost`. The subnet
        of a candidate is smaller, because outputs that no layer reads are removed too: see `tfnas.cost`.

        Args:
            parameters: expected kernel weights kept, strictly between 0 and `total_cost()`.
            multiply_adds: or expected multiply-adds, strictly between 0 and `total_cost("multiply_adds")`.

        Raises:
            UserError: unless exactly one of them is given, known and in its range.
        """
        budgets = {"parameters": parameters, "multiply_adds": multiply_adds}
        given = {resource: budget for resource, budget in budgets.items() if budget is not None}
        if len(given) != 1:
            received = ", ".join(f"{resource}={budget}" for resource, budget in given.items()) or "none of them"
            raise UserError(f"tilt: exactly one of {', '.join(COUNTED)} expected. Received: {received}")
        ((resource, budget),) = given.items()
        total = self.total_cost(resource)
        if not 0 < budget < total:
            raise UserError(f"tilt: {resource} must lie strictly between 0 and {total:,}. Received: {budget:,}")
        costs = self._per_channel(resource)
        scale = max(costs)

        def tilted(strength: float) -> Posterior:
            return Posterior(tuple(g.shifted(strength * c / scale) for g, c in zip(self.layers, costs, strict=True)))

        low, high = -1.0, 1.0
        while tilted(low).expected_cost(resource) < budget:
            low *= 2
        while tilted(high).expected_cost(resource) > budget:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if tilted(middle).expected_cost(resource) > budget else (low, middle)
        return tilted((low + high) / 2)

    def to_json(self) -> str:
        """JSON text that `from_json` reads back exactly."""
        return to_json(_File(layers=self.layers), 1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Posterior:
        """Inverse of `to_json`. Raises UserError for text that is truncated or is not the JSON of a posterior."""
        title = "posterior: not the JSON of a Posterior"
        layers = read(text, _File, title).layers
        names = {g.name for g in layers}
        if len(names) < len(layers):
            raise UserError(f"{title} ({len(layers)} layers with names of their own expected. Received: {len(names)})")
        total = sum(sum(g.group_sizes) for g in layers)
        if total > MOST_CHANNELS:
            raise UserError(f"{title} (at most {MOST_CHANNELS:,} channels expected. Received: {total:,})")
        return cls(layers)

    @classmethod
    def from_reference(cls, text: str, like: Posterior) -> Posterior:
        """Returns the gates of `like` with published drop probabilities.

        Args:
            text: JSON with `drop_probability`, from layer names to one p per source in the order of concatenation. A
                published name matches a layer's with its dots written as underscores ('denseblock1.denselayer1.conv1').
            like: of the supernet that the names belong to, for example `gate(densenet121(), ...).posterior()`.

        Raises:
            UserError: if the text is not such JSON, or its layers or their sources are not those of `like`.
        """
        found = read(text, _Published, "posterior: not the JSON of a published posterior")
        published = {name.replace(".", "_"): p for name, p in found.drop_probability.items()}
        differing = sorted(set(published) ^ {g.name for g in like.layers})
        if differing:
            where = "published layers" if differing[0] in published else "layers of the supernet"
            raise UserError(f"posterior: layers differ, first {brief(differing[0])}, which is only among the {where}")
        for g in like.layers:
            if len(published[g.name]) != len(g.group_sizes):
                raise UserError(
                    f"posterior: '{g.name}' has {len(g.group_sizes)} sources, one value each expected. "
                    f"Received: {len(published[g.name])}"
                )
        return cls(tuple(dataclasses.replace(g, drop_probability=published[g.name]) for g in like.layers))


def _total(keep: Mapping[str, np.ndarray], costs: Sequence[int]) -> int:
    """Cost of the channels kept, layer by layer."""
    return sum(int(mask.sum()) * cost for mask, cost in zip(keep.values(), costs, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:  # of `Posterior.to_json`
    format: Annotated[int, integer(_FORMAT, _FORMAT)] = _FORMAT
    layers: Annotated[tuple[LayerGates, ...], list_of(LayerGates, 1)]


@dataclasses.dataclass(frozen=True)
class _Published:  # of `Posterior.from_reference`
    drop_probability: Annotated[dict[str, tuple[float, ...]], mapping_of(list_of(Share, 1))]
