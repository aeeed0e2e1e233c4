"""UnitPosterior: independent Bernoulli gates of channel units, and candidates within bounds. No TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from markupsafe import Markup

from tfnas.common import markup
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.common.schema import Count, expect, integer, list_of, number, read, to_json
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.bernoulli import Bernoulli
from tfnas.search_space.closed_form import ClosedForm, Term
from tfnas.search_space.filling import Filling
from tfnas.search_space.layer_gates import Gates
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.tilting import shift, sigmoid, tilt

_FORMAT = 1
_TITLE = "posterior: not the JSON of a Posterior"
_ATTEMPTS = 128  # draws of a candidate that is to differ from those before it
_SAME_SPREAD = 8  # attempts before the noise is doubled
_CHUNK = 2**21  # scores held at once


@dataclasses.dataclass(frozen=True, repr=False)
class UnitPosterior(Bernoulli):
    """q(phi) over channel units, each kept independently (method.md, section 9); the supernet holds the weights.

    Attributes:
        form: the groups of units, and what they cost.
        keep_logits: log(q / (1 - q)), q the probability that a unit is kept; one per unit, float64.
        bounds: largest cost of a candidate by resource; empty: candidates are samples of the posterior.
        channel_multiple: groups of candidates keep a multiple of this many units, or all of theirs.
        tilts: whether logits of different groups compare as gains do, so that they are weighed against costs. If not,
            units enter a candidate strictly in the order of the logits, whatever they cost.
    """

    form: ClosedForm
    keep_logits: Annotated[tuple[float, ...], list_of(number(), 1)]
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    channel_multiple: Count = 1
    tilts: bool = True

    _masks, _channels = "groups", "units"

    def __post_init__(self) -> None:
        units = self.form.num_units
        expect(len(self.keep_logits) == units, "keep_logits", len(self.keep_logits), f"one for each of {units} units")
        unknown = sorted(set(self.bounds) - set(self.form.terms))
        expect(not unknown, "bounds", unknown, f"resources whose cost is known, {', '.join(self.form.terms)}")

    @functools.cached_property
    def layers(self) -> tuple[Gates, ...]:
        """The gates of each group, in order."""
        drop = np.split(sigmoid(-self._logits), self.form.starts[1:])
        return tuple(
            Gates(group.name, (1,) * group.size, tuple(p.tolist()))
            for group, p in zip(self.form.groups, drop, strict=True)
        )

    @functools.cached_property
    def _logits(self) -> np.ndarray:
        return np.array(self.keep_logits, np.float64)

    @functools.cached_property
    def keep_probability(self) -> np.ndarray:
        """Probability that a unit is kept, float64, shape (U,)."""
        return sigmoid(self._logits)

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{markup.percent(self.expected_share(resource))} of the {Resource(resource).words}"
            for resource in self.form.terms
        )
        return f"<UnitPosterior of {self.form.num_units:,} units in {len(self.layers):,} groups: {shares} expected>"

    def _repr_html_(self) -> Markup:
        decided, units = self.decided()
        shares = ", ".join(
            f"{100 * self.expected_share(resource):.1f} % of {Resource(resource).words}" for resource in self.form.terms
        )
        return self._drawn(
            f"{len(self.layers)} groups of channel units; expected to be kept: {shares}; {decided:,} of {units:,} "
            "units are decided (p below 0.05 or above 0.95)."
        )

    def expected_cost(self, resource: str = "parameters") -> float:
        """E[cost] of an architecture drawn from this posterior, without bounds or multiples; exact.

        Args:
            resource: 'parameters', 'multiply_adds' or 'latency' (seconds for one example).

        Raises:
            UserError: for a resource that is not known.
        """
        self.form.require(resource)
        return self.form.expectations[resource].value(self.keep_probability)

    def expected_share(self, resource: str = "parameters") -> float:
        """The expected cost as a share of the full network's."""
        return self.expected_cost(resource) / self.form.full(resource)

    def cost_of(self, architecture: Architecture, resource: str = "parameters") -> float:
        """Cost of one architecture once it is closed.

        Args:
            architecture: of this posterior's groups.
            resource: one of `expected_cost`'s.

        Raises:
            UserError: for another network's architecture, or a resource that is not known.
        """
        self._check_layers(architecture, "cost_of")
        kept = np.array([architecture[group.name].sum() for group in self.form.groups])
        return float(self.form.counts(self.form.closed(kept), [resource])[resource])

    def with_latency(self, terms: Sequence[Term]) -> UnitPosterior:
        """Returns this posterior with a measured latency.

        Args:
            terms: their coefficients in seconds for one example.
        """
        return dataclasses.replace(self, form=self.form.with_latency(terms))

    def tilted(self, bounds: Mapping[str, float] | None = None) -> UnitPosterior:
        """Moves the keep probabilities until the expected costs are within bounds.

        Every logit is shifted by - sum over r of lambda_r dE[cost_r]/dq, the gradient taken at the tilted
        probabilities: a stationary point of the divergence from this posterior, not the exact conditional, since the
        costs are not sums over units. The multiplier of a bound that does not bind is 0; that of a single bound may be
        negative, so that a bound looser than the search's adds expensive units first.

        If `tilts` is false, all logits are shifted by the same number instead, so that the expected costs are as large
        as the bounds allow.

        Args:
            bounds: as in `sample`; None: this posterior's own.

        Raises:
            UserError: for a resource that is not known, or a bound that no candidate can meet.
        """
        return self._tilted(self._resolved(bounds))

    def _resolved(self, bounds: Mapping[str, float] | None, multiple: int | None = None) -> dict[str, float]:
        resolved = dict(self.bounds) if bounds is None else self.form.absolute(bounds)
        self.form.check_reach(resolved, self.channel_multiple if multiple is None else multiple, bounds)
        return resolved

    def _tilted(self, bounds: Mapping[str, float]) -> UnitPosterior:
        # A bound above the full cost does not bind. One near the smallest cost would move the logits without limit.
        binding = {resource: bound for resource, bound in bounds.items() if bound < self.form.full(resource)}
        goals = []
        for resource, bound in binding.items():
            least, full = self.form.least(resource), self.form.full(resource)
            goals.append(max(bound, least + 1e-3 * (full - least)))
        costs = [self.form.expectations[resource] for resource in binding]
        if self.tilts:
            logits, _ = tilt(self._logits, costs, goals, either_sign=len(bounds) == 1)
        else:
            logits = shift(self._logits, costs, goals)
        return dataclasses.replace(self, keep_logits=tuple(logits.tolist()), bounds=dict(bounds))

    def sample(
        self, num_candidates: int, seed: int = 0, first: int = 0, channel_multiple: int | None = None, **bounds: float
    ) -> list[Architecture]:
        """Draws distinct candidates within bounds: closed architectures, each as large as its bounds allow.

        A candidate's units enter by the tilted logit plus logistic noise, while all bounds hold; without any bound,
        those enter whose sum is positive, which are independent Bernoulli samples. Without `tilts` the logits are not
        tilted, and the first unit that does not fit is the last. Candidate 0 is drawn without noise: the most probable
        one. Candidate i depends only on (seed, i). One that equals a candidate before it is drawn
        again, from wider and wider noise if need be.

        Args:
            num_candidates: how many to draw.
            seed: non-negative integer.
            first: index of the first candidate drawn.
            channel_multiple: groups keep a multiple of this many units, or all of theirs; None: this posterior's.
            **bounds: by resource, a share of the full network's cost if at most 1, else a cost; of latency always a
                share. None given: this posterior's bounds.

        Returns:
            As many as were asked for, or fewer if fewer are found to exist.

        Raises:
            UserError: for a number out of range, a resource that is not known, or a bound that no candidate can meet.
        """
        multiple = self.channel_multiple if channel_multiple is None else channel_multiple
        for name, value, least in (
            ("num_candidates", num_candidates, 0),
            ("seed", seed, 0),
            ("first", first, 0),
            ("channel_multiple", multiple, 1),
        ):
            if not isinstance(value, int | np.integer) or value < least:
                raise UserError(f"sample: {name} must be an integer of at least {least}. Received: {value!r}")
        resolved = self._resolved(bounds or None, multiple)
        key = (seed, multiple, *sorted(resolved.items()))
        if key not in self._drawn_candidates:
            logits = self._tilted(resolved)._logits if resolved and self.tilts else self._logits
            filling = Filling(self.form, resolved, multiple, strict=not self.tilts)
            self._drawn_candidates[key] = _Candidates(logits, filling, seed)
        masks = self._drawn_candidates[key].masks(first, first + num_candidates)
        names = [group.name for group in self.form.groups]
        return [Architecture(dict(zip(names, np.split(mask, self.form.starts[1:]), strict=True))) for mask in masks]

    @functools.cached_property
    def _drawn_candidates(self) -> dict[Any, _Candidates]:
        return {}

    def mode(self, **bounds: float) -> Architecture:
        """The most probable architecture within bounds: candidate 0 of `sample`."""
        return self.sample(1, 0, 0, None, **bounds)[0]

    def to_json(self) -> str:
        """JSON text that `from_json` reads back exactly."""
        return to_json(_File(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> UnitPosterior:
        """Inverse of `to_json`. Raises UserError for text that is truncated or is not the JSON of such a posterior."""
        return read(text, _File, _TITLE).unit_posterior


def read_posterior(text: str | bytes) -> Posterior | UnitPosterior:
    """The posterior in a file, of either kind. Raises UserError for text that is truncated or is neither.

    >>> from tfnas.search_space.layer_gates import LayerGates
    >>> q = Posterior((LayerGates("conv", (2, 1), (0.0, 1.0), 9),))
    >>> read_posterior(q.to_json()) == q
    True
    """
    kind = UnitPosterior if "unit_posterior" in read(text, dict[str, Any], _TITLE) else Posterior
    return kind.from_json(text)


class _Candidates:
    """The distinct candidates of a seed, drawn as they are asked for and kept, one bit per unit."""

    def __init__(self, logits: np.ndarray, filling: Filling, seed: int):
        self._logits, self._filling, self._seed = logits, filling, seed
        self._found: dict[bytes, None] = {}
        self._list: list[bytes] = []
        self._exhausted = False

    def masks(self, first: int, end: int) -> list[np.ndarray]:
        """Masks of candidates first to end - 1, bool, shape (U,) each; fewer if there are no more."""
        rows = max(1, _CHUNK // self._logits.size)
        while len(self._list) < end and not self._exhausted:
            self._draw(range(len(self._list), min(end, len(self._list) + rows)))
        return [
            np.unpackbits(np.frombuffer(packed, np.uint8), count=self._logits.size).astype(bool)
            for packed in self._list[first:end]
        ]

    def _draw(self, numbers: range) -> None:
        for i, packed in zip(numbers, self._packed([self._scores(i, 0) for i in numbers]), strict=True):
            attempt = 0
            while packed in self._found:
                # In batches: the more that were in vain, the more will be.
                batch = range(attempt + 1, min(2 * attempt + 1, _ATTEMPTS) + 1)
                if not batch:
                    self._exhausted = True
                    return
                drawn = self._packed([self._scores(i, attempt) for attempt in batch])
                packed = next((mask for mask in drawn if mask not in self._found), packed)
                attempt = batch[-1]
            self._found[packed] = None
            self._list.append(packed)

    def _packed(self, scores: list[np.ndarray]) -> list[bytes]:
        return [row.tobytes() for row in np.packbits(self._filling.keep(np.array(scores)), axis=1)]

    def _scores(self, i: int, attempt: int) -> np.ndarray:
        if i == attempt == 0:
            return self._logits
        # The last number keeps these draws apart from others of the same seed.
        rng = np.random.default_rng([self._seed, i, attempt, 1] if attempt else [self._seed, i])
        return self._logits + 2.0 ** (attempt // _SAME_SPREAD) * rng.logistic(size=self._logits.size)


@dataclasses.dataclass(frozen=True)
class _File:  # of `UnitPosterior.to_json`
    unit_posterior: UnitPosterior
    format: Annotated[int, integer(_FORMAT, _FORMAT)] = _FORMAT
