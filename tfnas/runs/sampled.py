"""The JSON files of search and sample: one record for each, for its writer and its readers. No TensorFlow.

Shares are in [0, 1]; a metric's values are as `tfnas.tasks.facts` describes it, and "the metric" is the task's metric
of an example, such as the accuracy. `tfnas.runs.stage_table` has the files' names.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any

from tfnas.common.resources import Resource
from tfnas.common.schema import (
    MOST,
    Amount,
    Count,
    Loss,
    Share,
    anything,
    expect,
    list_of,
    mapping_of,
    number,
)

_NearlyShare = Annotated[float, number(-1e-9, 1 + 1e-9)]  # a sum of rounded ones
_WithInterval = list_of(_NearlyShare, 3, 3)  # a figure and the two ends of its interval
Metrics = Annotated[dict[str, Loss], mapping_of(Loss)]  # values by name; one that is not finite is a useless network's
Architecture = Annotated[dict[str, Any], mapping_of(anything)]  # as `tfnas.search_space.architecture` writes it


class Kind(enum.StrEnum):
    """The origin of a network, in the order of the comparison's table."""

    FULL = "full network"
    NARROWED = "evenly narrowed"
    NORM = "group norm"
    SCALE = "normalization scale"
    CURVATURE = "curvature"
    GATES = "gates"
    EVEN = "random, spread evenly"
    ALLOCATED = "random, allocated per layer"
    FIXED_DROP = "fixed drop"
    SINGLE_PATH = "single path"
    MAGNITUDE_PRUNING = "magnitude pruning"
    DETERMINISTIC = "deterministic candidate"
    POSTERIOR = "posterior"
    FOUND = "found network"

    @property
    def place(self) -> int:
        """Its place in the table."""
        return list(Kind).index(self)


RANDOM = (Kind.EVEN, Kind.ALLOCATED)
BY_IMPORTANCE = {
    "even": Kind.NARROWED,
    "norm": Kind.NORM,
    "scale": Kind.SCALE,
    "curvature": Kind.CURVATURE,
    "gates": Kind.GATES,
}
SAMPLED = (Kind.POSTERIOR, *RANDOM)  # kinds of candidates


@dataclasses.dataclass(frozen=True)
class Epoch:
    """A line of search/history.jsonl.

    Attributes:
        epoch: its number, from 1.
        loss: the ELBO, mean over the epoch's training examples.
        metrics: of the task, on the same, by name.
        kept: expected share of the gated weights, or with bounds, of the channel units; without gates, the share that
            is trained.
        decided: how many gates are, of how many: '12/40'; None without gates.
        drop_probability: of every source of every gated layer, or of every group, the mean over its gates; empty if all
            units are trained.
        parameters: expected share of the full network's, if they are bounded.
        multiply_adds: likewise.
        latency: likewise.
    """

    epoch: Count
    loss: Annotated[float, number(-1e30, 1e30)]
    metrics: Metrics
    kept: Annotated[float, number(0, 2)]
    decided: str | None = None
    drop_probability: Annotated[dict[str, tuple[Share, ...]], mapping_of(list_of(Share, 1))] = dataclasses.field(
        default_factory=dict
    )
    parameters: float | None = None
    multiply_adds: float | None = None
    latency: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The score of a candidate on held-out examples.

    Attributes:
        loss: mean.
        metrics: means over examples by name, such as 'accuracy'.
        num_examples: how many there were.
    """

    loss: Loss
    metrics: Metrics
    num_examples: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate(Score):
    """A line of sample/candidates.jsonl, scored on as many examples as it was evaluated on in its race.

    Attributes:
        kind: one of `SAMPLED`.
        share: of the resource of `sample.budgets`; None for the others.
        number: among all of its kind and share.
        digest: of the architecture.
        parameters: of the network, counted exactly.
        multiply_adds: likewise.
        connected: whether its output depends on its input; if not, it may not win.
    """

    kind: Kind
    share: Share | None
    number: int
    digest: str
    parameters: int
    multiply_adds: int
    connected: bool


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Mean of the metric on fresh examples of the best of `count` candidates, and its interval."""

    count: Count
    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Race:
    """The outcome of a race of candidates of one kind.

    Attributes:
        best: the winner.
        architecture: the winner's.
        fresh: the winner on examples that the race did not use; None if none were kept.
        ties: indices of the candidates that tie with the winner.
        evaluations: of one example by one candidate, that the race took.
        saved: share of those that a full evaluation would take.
        best_of: of how many candidates the best has which fresh metric; empty if no examples were kept.
        leaders: the posterior's architectures in the race's order, for an ensemble.
    """

    best: Candidate
    architecture: Architecture
    fresh: Score | None
    ties: tuple[int, ...]
    evaluations: int
    saved: _NearlyShare
    best_of: tuple[BestOf, ...]
    leaders: tuple[Architecture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Candidates of one kind.

    Attributes:
        count: how many there are.
        able: how many of them may win.
        distinct: how many of those differ.
        left_out: why others may not; '' if all may, and differ.
        num_measured: the first of them, which means and deviations of scores are over, and which are measured on test.
        num_examples: that the means are on.
        mean_metric: of those.
        std_metric: likewise, as `mean_loss` and `std_loss`.
        mean_parameters: of all that were drawn, as `mean_multiply_adds`.
        first: the architectures of those measured.
        race: None if none may win.
    """

    count: Count
    able: int
    distinct: int
    left_out: str
    num_measured: Count
    num_examples: Count
    mean_metric: Loss
    std_metric: Loss
    mean_loss: Loss
    std_loss: Loss
    mean_parameters: Amount
    mean_multiply_adds: Amount
    first: Annotated[tuple[Architecture, ...], list_of(Architecture, 1)]
    race: Race | None


@dataclasses.dataclass(frozen=True)
class Paired:
    """Sign-flip test of the network found and another one, on the same examples (`tfnas.common.statistics.Paired`).

    Attributes:
        better: examples on which the network found is better: right where the other one is not, or of smaller loss.
        worse: examples on which the other one is.
        difference: mean error, or loss, of the network found less that of the other one.
        p_value: that there is no difference.
    """

    better: int
    worse: int
    difference: float
    p_value: _NearlyShare


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The best of equally many candidates of the posterior and of another kind, on the same fresh examples.

    Attributes:
        count: candidates of either kind.
        num_examples: fresh ones.
        metric: of the posterior's best.
        other_metric: of the other kind's.
        paired: the two compared.
    """

    count: Count
    num_examples: Count
    metric: Loss
    other_metric: Loss
    paired: Paired


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The quality of probabilities: figures with their 95 % intervals, and the calibration error."""

    accuracy: Annotated[tuple[float, ...], _WithInterval]
    nll: Annotated[tuple[float, ...], list_of(Loss, 3, 3)]
    ece: _NearlyShare


@dataclasses.dataclass(frozen=True)
class LatencyBound:
    """sample/latency_bound.json: the bound on the predicted latency under which the measured one is as asked.

    Attributes:
        asked: share of the full network's seconds.
        predicted: the bound on the predicted share.
        measured: share measured for the most probable network within it.
    """

    asked: Share
    predicted: Annotated[float, number(0)]
    measured: Annotated[float, number(0)]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """sample/ranking.json.

    Attributes:
        rank_by: what the posterior's candidates are ranked by.
        reads: input channels that each gated layer of the winner reads, or units that each of its groups has; None:
            the layer or the group is removed.
        kinds: what became of each of `SAMPLED`.
        comparisons: of the posterior's best with the best of each random kind, where there are fresh examples.
        predictive: of single networks and averages, by what they are; empty without `sample.ensemble`.
        bounds: largest cost of a candidate by resource; empty after a published search.
        latency: of a bound on it.
    """

    rank_by: str
    reads: dict[str, int | None]
    kinds: dict[Kind, Group]
    comparisons: dict[Kind, Comparison]
    predictive: dict[str, Prediction]
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    latency: LatencyBound | None = None

    def __post_init__(self) -> None:
        expect(set(self.kinds) == set(SAMPLED), "kinds", [*self.kinds], ", ".join(SAMPLED))
        expect(self.kinds[Kind.POSTERIOR].race is not None, "kinds.posterior.race", None, "there")

    @property
    def posterior(self) -> Group:
        """The posterior's candidates."""
        return self.kinds[Kind.POSTERIOR]

    @property
    def race(self) -> Race:
        """The race that the network found has won."""
        return self.posterior.race  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected cost of a posterior's candidates: mean, standard deviation, and the cost of all channels."""

    mean: Amount
    deviation: Amount
    total: Annotated[float, number(1e-30, MOST)]


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """The best candidate at one budget.

    Attributes:
        share: of the resource; None: search's bounds, or as learned.
        expected: of the front's resource, by a posterior tilted to it; None after a search with bounds.
        mean_metric: of the first candidates.
        best: the winner of the race.
        fresh: the winner on fresh examples.
        architecture: the winner's.
    """

    share: Share | None
    expected: Expected | None
    mean_metric: Loss
    best: Candidate
    fresh: Score | None
    architecture: Architecture


@dataclasses.dataclass(frozen=True)
class Front:
    """sample/front.json: the networks found at the budgets, the smallest first.

    Attributes:
        resource: that the budgets are shares of.
        points: one a budget.
    """

    resource: Resource
    points: Annotated[tuple[FrontPoint, ...], list_of(FrontPoint, 1)]


@dataclasses.dataclass(frozen=True)
class LayerLatencies:
    """search/latencies.json: seconds of one example in the full network, and in each of its layers alone.

    Attributes:
        key: of the search that they were measured for.
        full, overhead, products, outputs: as `Latencies` has them.
    """

    key: str
    full: Annotated[float, number(0)]
    overhead: Annotated[float, number(0)]
    products: Annotated[dict[str, float], mapping_of(number(0))]
    outputs: Annotated[dict[str, float], mapping_of(number(0))]
