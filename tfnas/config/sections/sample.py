"""Settings of drawing candidates and ranking them."""

from __future__ import annotations

import dataclasses

from tfnas.common.resources import Resource
from tfnas.config import fields

_RESOURCES = tuple(resource.value for resource in Resource)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Drawing candidates and ranking them (method.md, section 3)."""

    num_candidates: int = 1500
    num_random: int = 100  # random candidates of equal size, of each kind: the baselines
    num_tested: int = 20  # candidates of each kind that are measured in full, and at the very end on test: the means
    # Other bounds than the search's, in the same form, which every candidate then obeys. After a search with ell2, one
    # share of the gated layers' kernel weights or of their multiply-adds: the posterior is tilted until that is
    # expected to be kept. All 0: search's bounds, or the posterior as learned.
    parameters: float = 0.0
    multiply_adds: float = 0.0
    latency: float = 0.0
    channel_multiple: int = 1  # after a search with bounds: layers keep a multiple of this many channels, or all
    budgets: tuple[float, ...] = ()  # shares: sample at each of these too, for the Pareto front of accuracy and cost
    resource: str = "parameters"  # that `budgets` are shares of: 'parameters', 'multiply_adds' or 'latency'
    # The more reliable; or the task's metric of an example: 'accuracy', the paper's; of a regression 'mae'; of a custom
    # task the metric's own name.
    rank_by: str = "loss"
    racing: float = 0.95  # confidence of the race (tfnas/ranking/racing.py); 0: evaluate every candidate in full
    tolerance: float = 0.5  # standard errors by which the winner of the race may miss the best
    # Candidates that are evaluated on all of the race's images: the others leave earlier, proven to be worse or not.
    # 0: only those leave that are proven to be.
    finalists: int = 20
    holdout: float = 0.2  # share of the validation images kept from the race, to measure the winner on
    # Number of training images from which each candidate's own batch-normalization statistics are computed; search's
    # are those of relaxed, random gates. 0: keep search's.
    recalibrate: int = 250
    ensemble: int = 0  # also evaluate the average of this many of the best candidates, and of as many posterior samples
    batch_size: int = 250

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds by resource, as they are set."""
        return {resource.value: bound for resource in Resource if (bound := getattr(self, resource))}

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.at_least("sample.num_candidates", self.num_candidates, 1)
        fields.at_least("sample.num_random", self.num_random, 1)
        fields.at_least("sample.num_tested", self.num_tested, 1)
        fields.check_bounds("sample", self.bounds)
        fields.at_least("sample.channel_multiple", self.channel_multiple, 1)
        for share in self.budgets:
            fields.require(0 < share < 1, "sample.budgets", share, "shares in (0, 1)")
        fields.one_of("sample.resource", self.resource, _RESOURCES)
        fields.require(0 <= self.racing < 1, "sample.racing", self.racing, "a confidence in (0, 1), or 0 for no race")
        fields.at_least("sample.tolerance", self.tolerance, 0)
        fields.at_least("sample.finalists", self.finalists, 0)
        fields.require(0 <= self.holdout < 1, "sample.holdout", self.holdout, "a share in [0, 1)")
        fields.at_least("sample.recalibrate", self.recalibrate, 0)
        fields.at_least("sample.ensemble", self.ensemble, 0)
        fields.at_least("sample.batch_size", self.batch_size, 1)

    def check_published(self) -> None:
        """Raises UserError for a value that does not fit a search with `ell2`."""
        after = "after a search with ell2"
        of_bounds = "it belongs to a search with bounds, and search.ell2 is set"
        fields.require(not self.latency, "sample.latency", self.latency, f"left out: {of_bounds}")
        counted = self.resource != Resource.LATENCY
        fields.require(counted, "sample.resource", self.resource, f"another one: {of_bounds}")
        fields.require(len(self.bounds) < 2, "sample.parameters and multiply_adds", self.bounds, f"one share {after}")
        for resource, bound in self.bounds.items():
            fields.require(bound < 1, f"sample.{resource}", bound, f"a share in (0, 1) {after}")
        fields.require(
            self.channel_multiple == 1, "sample.channel_multiple", self.channel_multiple, f"left at 1 {after}"
        )
