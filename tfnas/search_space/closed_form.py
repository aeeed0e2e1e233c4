"""ClosedForm: what a network costs, as a formula in the widths of its channel groups. No TensorFlow."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.common.schema import Count, expect, list_of, number
from tfnas.search_space.architecture import MOST_CHANNELS
from tfnas.search_space.expectation import Expectation, Monomial


@dataclasses.dataclass(frozen=True)
class Group:
    """All channel units with the same writers and readers: the width of a layer.

    Attributes:
        name: as architectures have it.
        size: units, at least 1.
        may_empty: whether the network works without any of them; if not, the most probable one is kept, unless the
            whole group goes with another one (`ClosedForm.dead`).
        stream: whether an additive merge ties the units, as in a residual stream.
    """

    name: str
    size: Count
    may_empty: bool
    stream: bool


@dataclasses.dataclass(frozen=True)
class Width:
    """The channels of one tensor: n = pinned + the sum over groups of m_g k_g, k_g the kept units of group g.

    Attributes:
        pinned: channels that belong to no unit.
        members: (number of the group, channels of each of its units) pairs.
    """

    pinned: int
    members: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for i, member in enumerate(self.members):
            expect(len(member) == 2, f"members[{i}]", member, "a group and a multiplicity")


@dataclasses.dataclass(frozen=True)
class Term:
    """A summand of a cost: coefficient * n_first * n_second if all needed groups keep a unit, else 0.

    Attributes:
        name: of the layer that it belongs to.
        coefficient: at least 0.
        first: number of a width; 0 is the constant 1.
        second: number of another, or of the same.
        needs: numbers of groups, each of which must keep at least one unit for the term to count.
    """

    name: str
    coefficient: Annotated[float, number(0)]
    first: int
    second: int = 0
    needs: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Costs of a network as a function of how many units each of its groups keeps (method.md, section 9).

        cost = the sum over terms of coefficient * n_first * n_second * [every needed group keeps a unit]

    Every coefficient is at least 0, so that no cost falls when a unit is added.

    >>> form = ClosedForm(
    ...     groups=(Group("conv", 4, may_empty=False, stream=False),),
    ...     widths=(Width(1), Width(3), Width(0, ((0, 1),)), Width(10)),
    ...     terms={"parameters": (Term("conv", 9, 1, 2), Term("head", 1, 2, 3))},
    ...     dead=((),),
    ... )
    >>> form.full("parameters"), form.least("parameters")
    (148.0, 37.0)
    >>> form.counts(np.array([[1], [2], [4]]))["parameters"].tolist()
    [37.0, 74.0, 148.0]

    Attributes:
        groups: units are numbered group by group.
        widths: the first is the constant 1.
        terms: by resource: 'parameters'; 'multiply_adds' unless the image size is not fixed; 'latency' once it was
            measured, in seconds.
        dead: for each group, the groups of which each, if it is empty, makes all of its units go.
        unread: by resource, what the full network has beyond its terms: channels that nothing reads, which no network
            that is cut has. It is 0 for resources that are not named.
    """

    groups: Annotated[tuple[Group, ...], list_of(Group, 1)]
    widths: Annotated[tuple[Width, ...], list_of(Width, 1)]
    terms: dict[str, tuple[Term, ...]]
    dead: tuple[tuple[int, ...], ...]
    unread: dict[str, Annotated[float, number(0)]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.groups)
        names = {group.name for group in self.groups}
        expect(len(names) == count, "groups", count, f"groups with names of their own, {len(names)}")
        units = sum(group.size for group in self.groups)
        expect(units <= MOST_CHANNELS, "groups", units, f"at most {MOST_CHANNELS:,} units")
        expect(self.widths[0] == Width(1), "widths[0]", self.widths[0], "the constant 1")
        expect(len(self.dead) == count, "dead", len(self.dead), f"an entry for each of {count} groups")
        expect("parameters" in self.terms, "terms", [*self.terms], "there for 'parameters'")
        used = [g for width in self.widths for g, _ in width.members] + [g for entry in self.dead for g in entry]
        for resource, terms in self.terms.items():
            expect(resource in list(Resource), "terms", resource, f"one of {', '.join(Resource)}")
            used += [g for term in terms for g in term.needs]
            widths = [i for term in terms for i in (term.first, term.second) if not 0 <= i < len(self.widths)]
            expect(not widths, f"terms.{resource}", widths, f"numbers of {len(self.widths)} widths")
        wrong = [g for g in used if not 0 <= g < count]
        expect(not wrong, "groups", wrong, f"numbers of {count} groups")

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Units of each group, int64, shape (G,)."""
        return np.array([group.size for group in self.groups])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The first unit of each group, int64, shape (G,)."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def num_units(self) -> int:
        """U, units in all groups."""
        return int(self.sizes.sum())

    @functools.cached_property
    def _may_empty(self) -> np.ndarray:
        return np.array([group.may_empty for group in self.groups])

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Whether group g is gone if group h empties on its own, through any others, shape (G, G)."""
        count = len(self.groups)
        direct = np.eye(count, dtype=bool)
        for g, groups in enumerate(self.dead):
            direct[g, list(groups)] = True
        while True:
            further = (direct.astype(np.float32) @ direct.astype(np.float32)) > 0
            if (further == direct).all():
                return direct & self._may_empty
            direct = further

    def closed(self, kept: np.ndarray, multiple: int = 1) -> np.ndarray:
        """Kept units by group once everything is gone that an empty group takes with it.

        Args:
            kept: of each group, int, shape (..., G).
            multiple: units that a group keeps at least if it may not empty.

        Returns:
            The same shape.
        """
        kept = np.where(self._may_empty, kept, np.maximum(kept, np.minimum(self.sizes, multiple)))
        gone = ((kept == 0).astype(np.float32) @ self._ends.T.astype(np.float32)) > 0
        return np.where(gone, 0, kept)

    @functools.cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        """Pinned channels of each width, shape (W,), and channels of a unit of each group, shape (G, W)."""
        channels = np.zeros((len(self.groups), len(self.widths)))
        for w, width in enumerate(self.widths):
            for g, multiplicity in width.members:
                channels[g, w] += multiplicity
        return np.array([width.pinned for width in self.widths], np.float64), channels

    @functools.cached_property
    def _tables(self) -> dict[str, _Table]:
        return {resource: _Table.of(terms, len(self.groups)) for resource, terms in self.terms.items()}

    def counts(self, kept: np.ndarray, resources: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Costs of closed architectures.

        Args:
            kept: units of each group, as `closed` returns them, int, shape (..., G).
            resources: those to count; None: all that are known.

        Returns:
            By resource, float64 of shape (...); whole numbers, exact up to 2**53, but for latency.
        """
        costs = {}
        empty = kept == 0
        pinned, channels = self._members
        widths = pinned + kept @ channels
        for resource in self.terms if resources is None else resources:
            costs[resource] = self._table(resource).values(widths, empty).sum(-1)
        return costs

    def _table(self, resource: str) -> _Table:
        self.require(resource)
        return self._tables[resource]

    def require(self, resource: str) -> None:
        """Raises UserError unless the resource's cost is known."""
        if resource in self.terms:
            return
        if resource not in list(Resource):
            known = ", ".join(f"'{known}'" for known in Resource)
            raise UserError(f"posterior: one of {known} expected. Received: {resource!r}")
        if resource == Resource.LATENCY:
            raise UserError("posterior: latency is not known: measure it first, by posterior.with_latency(...)")
        raise UserError(
            f"posterior: {resource} are not known, because the model's input has no fixed size: build it with one, "
            "or bound the parameters"
        )

    def full(self, resource: str) -> float:
        """Cost of the full network."""
        return float(self.counts(self.sizes, [resource])[resource]) + self.unread.get(resource, 0.0)

    def least(self, resource: str, multiple: int = 1) -> float:
        """Smallest cost: every group is empty that may be, every other keeps a unit, or a multiple if it has as many.

        Args:
            resource: one of `terms`.
            multiple: `channel_multiple`.
        """
        smallest = self.closed(np.zeros_like(self.sizes), multiple)
        return float(self.counts(smallest, [resource])[resource])

    def absolute(self, bounds: Mapping[str, float]) -> dict[str, float]:
        """Bounds as costs.

        Args:
            bounds: by resource, a share of the full cost if it is at most 1, else a cost; of latency always a share.

        Raises:
            UserError: for a resource that is not known, a bound that is not a positive number, or more than the full
                latency.
        """
        for resource, bound in bounds.items():
            self.require(resource)
            most, otherwise = (1, "") if resource == Resource.LATENCY else (math.inf, ", or a number above 1")
            valued = isinstance(bound, int | float | np.number) and not isinstance(bound, bool)
            if not (valued and 0 < bound < math.inf and bound <= most):
                raise UserError(
                    f"bounds: {resource} must be a share of the full network's, above 0 and at most 1{otherwise}. "
                    f"Received: {bound!r}"
                )
        return {
            resource: float(bound) * (self.full(resource) if bound <= 1 else 1) for resource, bound in bounds.items()
        }

    def holders(self, resource: str, kept: np.ndarray) -> dict[str, float]:
        """Costs of one closed architecture by layer, the largest first; layers without cost are left out.

        Args:
            resource: one of `terms`.
            kept: units of each group, int, shape (G,).
        """
        pinned, channels = self._members
        values = self._table(resource).values(pinned + kept @ channels, kept == 0)
        found: collections.Counter[str] = collections.Counter()
        for term, value in zip(self.terms[resource], values.tolist(), strict=True):
            if value:
                found[term.name] += value
        return dict(found.most_common())

    def check_reach(
        self, bounds: Mapping[str, float], multiple: int = 1, given: Mapping[str, float] | None = None
    ) -> None:
        """Raises UserError if a bound, given as a cost, is below the smallest cost, and names the layers that hold it.

        Args:
            bounds: largest cost by resource.
            multiple: `channel_multiple`.
            given: the bounds as they were given, shares or costs, for the message.
        """
        smallest = self.closed(np.zeros_like(self.sizes), multiple)
        for resource, bound in bounds.items():
            least, full = self.least(resource, multiple), self.full(resource)
            if bound >= least:
                continue
            share = math.ceil(1000 * least / full) / 1000  # not below what is possible
            # Seconds are nothing that a user gives.
            scale = full if resource == Resource.LATENCY else 1.0
            remain = f"{share:g} of the full network's"
            if resource != Resource.LATENCY:
                remain = f"{least:,.0f} of {full:,.0f} remain, a share of {share:g}"
            asked = (given or {}).get(resource, bound / scale)
            layers = list(self.holders(resource, smallest).items())[:3]
            held = ", ".join(f"'{name}' {shown(value / scale)}" for name, value in layers)
            slip = "; did you mean a share, at most 1?" if given and 1 < asked <= 100 else ""
            advice = "raise the bound"
            if bound >= self.least(resource):
                advice += f", or lower channel_multiple={multiple}, which holds it: with 1 it is within reach"
            raise UserError(
                f"bounds: {resource}={shown(asked)} is out of reach: at least {remain}, the most in {held}; "
                f"{advice}{slip}"
            )

    @functools.cached_property
    def expectations(self) -> dict[str, Expectation]:
        """The expected cost of closed architectures under independent units, by resource."""
        return {resource: Expectation(self.monomials(resource), self.sizes, self._may_empty) for resource in self.terms}

    def monomials(self, resource: str) -> dict[Monomial, float]:
        """The cost as a polynomial in the kept units: coefficient by (group, group, groups that must not be empty).

        A closed count is the count, times whether the groups that the group ends with are not empty. Since
        k [k > 0] = k, a group that is a factor itself is left out of those.

        Args:
            resource: one of `terms`.
        """
        self.require(resource)
        one = len(self.groups)
        found: collections.defaultdict[Monomial, float] = collections.defaultdict(float)
        ends = [frozenset(np.flatnonzero(row).tolist()) for row in self._ends] + [frozenset()]
        for term in self.terms[resource]:
            needed = frozenset().union(*(ends[g] for g in term.needs))
            for a, m_a in ((one, self.widths[term.first].pinned), *self.widths[term.first].members):
                for b, m_b in ((one, self.widths[term.second].pinned), *self.widths[term.second].members):
                    if coefficient := term.coefficient * m_a * m_b:
                        alive = (needed | ends[a] | ends[b]) - {a, b}
                        found[min(a, b), max(a, b), alive] += coefficient
        return dict(found)

    def with_latency(self, terms: Sequence[Term]) -> ClosedForm:
        """Returns this form with a measured latency.

        Args:
            terms: their coefficients in seconds for one example.
        """
        return dataclasses.replace(self, terms={**self.terms, str(Resource.LATENCY): tuple(terms)})


@dataclasses.dataclass(frozen=True)
class _Table:
    """The terms of a resource as arrays."""

    coefficients: np.ndarray  # (T,)
    first: np.ndarray  # (T,)
    second: np.ndarray  # (T,)
    needs: np.ndarray  # (G, T), 0 or 1

    @classmethod
    def of(cls, terms: Sequence[Term], num_groups: int) -> _Table:
        needs = np.zeros((num_groups, len(terms)), np.float32)
        for t, term in enumerate(terms):
            needs[list(term.needs), t] = 1
        coefficients = np.array([term.coefficient for term in terms], np.float64)
        first, second = (np.array([getattr(term, name) for term in terms], int) for name in ("first", "second"))
        return cls(coefficients, first, second, needs)

    def values(self, widths: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Each term's value, shape (..., T), from the widths, shape (..., W), and the empty groups, (..., G)."""
        works = empty.astype(np.float32) @ self.needs == 0
        return self.coefficients * widths[..., self.first] * widths[..., self.second] * works


def shown(cost: float) -> str:
    """A bound or cost in a message: a share in four digits, a count without decimals unless it is small."""
    return f"{cost:,.0f}" if cost > 100 or float(cost).is_integer() else f"{cost:.4g}"
