"""Previews a search: which sizes are possible, what they may cost, and where parameters and time are. No training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np
from markupsafe import Markup

from tfnas.common import markup
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.config import Retrain, Search
from tfnas.data import inputs
from tfnas.gating.importances import by_curvature, expansion
from tfnas.gating.placement import gate
from tfnas.gating.unit_supernet import UnitSupernet, costs_of
from tfnas.graph import pins
from tfnas.graph.latencies import Device, Latencies
from tfnas.graph.models import as_functional
from tfnas.graph.units import UnitGraph
from tfnas.ranking.losses import Criterion
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.scored import posterior_of
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.shrinking.given import compiling
from tfnas.shrinking.given.trained import looks_trained
from tfnas.shrinking.tables import Table, count, short_time
from tfnas.training.best_cut import best_cut, mean_loss

SHARES = (0.75, 0.5, 0.25)
_BATCH = 25  # examples of one gradient
_MOST_LAYERS = 5  # shown


@dataclasses.dataclass(frozen=True)
class Costly:
    """A layer or all layers of a class, and what it costs in the full network.

    Attributes:
        name: the layer's name, or the class's.
        costs: by resource; of latency in seconds.
    """

    name: str
    costs: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Size:
    """One size, without any training.

    Attributes:
        share: asked for, of the bounded resource.
        costs: of the network, by resource; of latency in seconds, as predicted from its layers.
        estimate: of the loss, the full network's plus its expansion to the second order. None without data.
        loss: held-out loss of the network at once, in the best way of `best_cut`. None without data.
        way: that way.
        metrics: held-out compiled metrics of that network.
    """

    share: float
    costs: Mapping[str, float]
    estimate: float | None = None
    loss: float | None = None
    way: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, repr=False)
class Preview:
    """Expectations of a smaller network, which show themselves as tables, in a terminal and in a notebook.

    Attributes:
        name: of the model.
        resource: that the sizes are shares of.
        full: the whole network, measured on the same held-out examples.
        sizes: the others, the largest first.
        out_of_reach: shares asked for that no network can have.
        smallest: smallest share of the full network's cost that is possible, by resource; above 0.
        holding: by resource, shares of the full network's cost of the layers that hold most of the smallest network.
        streams: by stream that keeps all of its channels, the layers that need them.
        uncut: by layer that could not be taken apart and stays as it is, the reason.
        layers: all layers with a cost, those with most of `resource` first.
        families: the same by class.
        num_examples: held-out examples that losses and metrics are measured on; 0 without data.
        looks_trained: whether the weights do, by a permutation test on these; None without data.
    """

    name: str
    resource: str
    full: Size
    sizes: tuple[Size, ...]
    out_of_reach: tuple[float, ...]
    smallest: Mapping[str, float]
    holding: Mapping[str, Mapping[str, float]]
    streams: Mapping[str, Sequence[str]]
    uncut: Mapping[str, str]
    layers: tuple[Costly, ...]
    families: tuple[Costly, ...]
    num_examples: int
    looks_trained: bool | None

    def __repr__(self) -> str:
        return "\n\n".join(str(part) for part in self._parts())

    def _repr_html_(self) -> Markup:
        return Markup("").join(
            part._repr_html_() if isinstance(part, Table) else markup.paragraph(part) for part in self._parts()
        )

    def _parts(self) -> list[str | Table]:
        """Paragraphs and tables, in order."""
        return [self._lead(), self._of_sizes(), *self._notes(), self._of_layers()]

    def _lead(self) -> str:
        smallest = ", ".join(
            f"{markup.percent(share)} of the {Resource(resource).words}" for resource, share in self.smallest.items()
        )
        text = f"Preview of '{self.name}', without training. Smallest network: {smallest}."
        if self.num_examples:
            text += f" Losses are those of {self.num_examples:,} held-out examples."
        if self.looks_trained is False:
            text += " The weights are not trained for these labels, so that losses say nothing."
        return text

    def _of_sizes(self) -> Table:
        metrics = list(self.full.metrics)
        has_loss = self.full.loss is not None
        headings = [Resource(self.resource).words, *(Resource(r).words for r in self.full.costs if r != self.resource)]
        headings += ["estimated loss", "measured loss", *metrics, "best"] if has_loss else []
        rows = []
        for size in (self.full, *self.sizes):
            costs = [size.costs[self.resource], *(c for r, c in size.costs.items() if r != self.resource)]
            resources = [self.resource, *(r for r in size.costs if r != self.resource)]
            cells = [
                f"{markup.percent(c / self.full.costs[r], 0)}, {_cost(r, c)}"
                for r, c in zip(resources, costs, strict=True)
            ]
            if has_loss:
                cells += ["" if size.estimate is None else f"{size.estimate:.4g}", f"{size.loss:.4g}"]
                cells += [*(f"{size.metrics[name]:.4g}" for name in metrics), size.way]
            rows.append(cells)
        return Table(headings, rows)

    def _notes(self) -> list[str]:
        notes = []
        if self.out_of_reach:
            asked = ", ".join(markup.percent(share, 0) for share in self.out_of_reach)
            notes.append(f"Out of reach: {asked} of the {Resource(self.resource).words}.")
        held = ", ".join(f"'{name}' {markup.percent(share)}" for name, share in self.holding[self.resource].items())
        notes.append(f"Of the smallest network's {Resource(self.resource).words}, most are in {held} of the full.")
        for stream, names in self.streams.items():
            some = ", ".join(f"'{name}'" for name in names[:3]) + ", ..." * (len(names) > 3)
            notes.append(f"The stream of '{stream}' keeps all of its channels for {some}.")
        for name, why in self.uncut.items():
            notes.append(f"'{name}' is left whole, because {why}.")
        return notes

    def _of_layers(self) -> Table:
        total = self.full.costs
        headings = ["where it is", *(Resource(r).words for r in total)]
        shown = [*self.families, *self.layers[:_MOST_LAYERS]]
        rows = [
            [part.name, *(markup.percent(part.costs.get(r, 0.0) / cost) for r, cost in total.items())] for part in shown
        ]
        return Table(headings, rows)


def _cost(resource: str, cost: float) -> str:
    return short_time(cost) if resource == Resource.LATENCY else count(cost)


def preview(
    model: keras.Model,
    data: Any = None,
    *,
    parameters: float | Sequence[float] | None = None,
    multiply_adds: float | Sequence[float] | None = None,
    latency: float | Sequence[float] | None = None,
    device: str | Device | None = "tensorflow",
    exclude: str | Sequence[str] = (),
    channel_multiple: int = 1,
    example: Any = None,
    num_examples: int = 1_000,
    seed: int = 0,
) -> Preview:
    """Says within about a minute, and without training, what a smaller network can be expected to be like.

    Losses and metrics are those that the model is compiled with, or, if it is not, by its outputs and the labels, as of
    `tfnas.shrink`. Half of the examples are used for gradients, statistics and refitting, the other half is held out.
    Each size is the most probable network by curvature (method.md, "Importances") and cut out in the best of three ways
    (`best_cut`). Its losses are upper bounds in practice: training after the cut, or a search, does better.

    The estimate adds to the full network's loss its expansion to the second order while the gates of the lost units
    close (`importances.expansion`). It is good close to the full size, and too low far from it.

    Args:
        model: any model that `gate` takes, with trained weights if the losses are to mean anything; not changed.
        data: labeled examples, as for `tfnas.rank`, of which random ones are used if they are arrays, else the first.
            None: no losses.
        parameters: sizes, one or several shares of the model's in (0, 1). Of one resource only; None of all: 0.75, 0.5
            and 0.25 of the multiply-adds, or of the parameters if the input has no fixed size.
        multiply_adds: likewise, of one example.
        latency: likewise, of the seconds of one example.
        device: where each layer is timed, as of `gate`; None: nowhere.
        exclude, channel_multiple, example: as of `gate`.
        num_examples: used at most.
        seed: of the choice of examples.

    Returns:
        A `Preview`.

    Raises:
        UserError: as `gate` and `best_cut`; if sizes of more than one resource are given, or one that is not a share;
            if the model is not compiled with a loss; for fewer than 4 examples.
    """
    asked = {"parameters": parameters, "multiply_adds": multiply_adds, "latency": latency}
    resource, shares = _asked({name: value for name, value in asked.items() if value is not None})
    supernet = _gated(model, example, exclude, channel_multiple, streams=None)
    latencies = None
    if device is not None and _is_fixed(supernet):
        latencies = Latencies.measure(supernet.graph, device)
    resource = resource or ("multiply_adds" if "multiply_adds" in supernet.form.terms else "parameters")
    wide = costs_of(UnitGraph(supernet.graph.model, supernet.graph.exclude, streams=True), latencies)
    wide.require(resource)
    smallest = {name: wide.least(name, channel_multiple) / wide.full(name) for name in wide.terms}
    reached = tuple(share for share in shares if share >= smallest[resource])
    form = costs_of(supernet.graph, latencies)
    if reached and min(reached) < form.least(resource, channel_multiple) / form.full(resource):
        supernet = _gated(model, example, exclude, channel_multiple, streams=True)
        form = costs_of(supernet.graph, latencies)
    measuring = None if data is None else _Measuring(model, example, supernet, data, num_examples, seed)
    full, sizes = _sizes(supernet, form, resource, reached, channel_multiple, measuring)
    layers = _costly(form, {node.name: node.name for node in supernet.graph.nodes})
    families = _costly(form, {node.name: type(node.inner).__name__ for node in supernet.graph.nodes})
    least = {
        name: dict(list(wide.holders(name, wide.closed(np.zeros_like(wide.sizes), channel_multiple)).items())[:3])
        for name in wide.terms
    }
    return Preview(
        model.name,
        resource,
        full,
        sizes,
        tuple(share for share in shares if share not in reached),
        smallest,
        {name: {layer: cost / wide.full(name) for layer, cost in held.items()} for name, held in least.items()},
        pins.stream_pins(supernet.graph),
        dict(supernet.graph.untraced),
        tuple(sorted(layers, key=lambda layer: -layer.costs.get(resource, 0.0))),
        tuple(sorted(families, key=lambda family: -family.costs.get(resource, 0.0))),
        measuring.num_held_out if measuring else 0,
        measuring.looks_trained if measuring else None,
    )


def _asked(given: Mapping[str, Any]) -> tuple[str | None, tuple[float, ...]]:
    """The resource, and the shares of it, the largest first."""
    if len(given) > 1:
        raise UserError(f"preview: sizes of one resource expected. Received: {', '.join(given)}")
    if not given:
        return None, SHARES
    ((resource, value),) = given.items()
    shares = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for share in shares:
        is_number = isinstance(share, int | float | np.number) and not isinstance(share, bool)
        if not is_number or not 0 < share < 1:
            raise UserError(f"preview: {resource} must be shares in (0, 1). Received: {share!r}")
    return resource, tuple(sorted({float(share) for share in shares}, reverse=True))


def _gated(
    model: keras.Model, example: Any, exclude: str | Sequence[str], channel_multiple: int, streams: bool | None
) -> UnitSupernet:
    """The model's supernet, under a bound that binds nothing."""
    options: dict[str, Any] = {"exclude": exclude, "channel_multiple": channel_multiple, "streams": streams}
    made = gate(model, parameters=1.0, importance="curvature", iterative=False, example=example, **options)
    return cast(UnitSupernet, made)


def _is_fixed(supernet: UnitSupernet) -> bool:
    return all(None not in node.spatial for node in supernet.graph.nodes)


def _costly(form: ClosedForm, names: Mapping[str, str]) -> list[Costly]:
    """Costs of the full network's layers, joined by these names."""
    found: dict[str, dict[str, float]] = {}
    for resource in form.terms:
        for layer, cost in form.holders(resource, form.sizes).items():
            of_part = found.setdefault(names.get(layer, layer), {})
            of_part[resource] = of_part.get(resource, 0.0) + cost
    return [Costly(name, costs) for name, costs in found.items()]


class _Measuring:
    """Curvature, cuts and their losses, on two halves of the examples.

    Args:
        model, example: the user's.
        supernet: of the model; is compiled as it is, or by its outputs and labels.
        data, num_examples, seed: as of `preview`.

    Attributes:
        num_held_out: examples that losses are measured on.
        looks_trained: whether the weights do, by a permutation test.
        full_loss, full_metrics: of the full network, held-out.
    """

    def __init__(
        self, model: keras.Model, example: Any, supernet: UnitSupernet, data: Any, num_examples: int, seed: int
    ):
        examples = inputs.read_some(data, supernet.network, "preview", num_examples, seed)
        given = compiling.as_given(model, as_functional(model, example).output_names)
        settings = Search(parameters=0.5).resolved(Retrain(), True)
        self._compiling = given or compiling.chosen(supernet.network, examples.labels, True, settings)
        self._compiling.apply(supernet)
        if len(examples) < 4:
            raise UserError(f"preview: some hundred labeled examples expected, at least 4. Received: {len(examples)}")
        order = np.random.default_rng(seed).permutation(len(examples))
        half = len(order) // 2
        self._fitted, self._held_out = examples.take(order[:half]), examples.take(order[half:])
        self._supernet = supernet
        self.num_held_out = len(self._held_out)
        size = min(_BATCH, half)
        parts = [self._fitted.take(slice(first, first + size)) for first in range(0, half - size + 1, size)]
        self._batches = [(self._packed(part.inputs), part.labels, part.weights) for part in parts]
        criterion = Criterion(supernet, self._held_out, "preview")
        self.looks_trained = looks_trained(supernet, self._held_out, seed)
        self.full_loss = mean_loss(supernet.network, self._held_out, criterion)
        self.full_metrics = self._metrics(supernet.network)

    def _packed(self, arrays: Sequence[np.ndarray]) -> Any:
        return keras.tree.pack_sequence_as(self._supernet.network.input, [*arrays])

    def posterior(self, form: ClosedForm, bounds: Mapping[str, float]) -> UnitPosterior:
        """The posterior by curvature at these bounds."""
        return by_curvature(self._supernet, self._batches, bounds, form=form)

    def of(self, architecture: Architecture) -> dict[str, Any]:
        """Returns what `Size` says of an architecture's network beside its costs."""
        held_out = (self._packed(self._held_out.inputs), self._held_out.labels, self._held_out.weights)
        best = best_cut(self._supernet, architecture, self._packed(self._fitted.inputs), held_out)
        lost = ~np.concatenate([*architecture.values()])
        return {
            "estimate": self.full_loss + expansion(self._supernet, self._batches, lost),
            "loss": best.losses[best.way],
            "way": str(best.way),
            "metrics": self._metrics(best.model),
        }

    def _metrics(self, model: keras.Model) -> dict[str, float]:
        """Compiled metrics of a model on the held-out examples."""
        copy = keras.Model(model.input, model.output)
        self._compiling.apply(copy)
        few = self._held_out.take(slice(0, 2))
        compiling.build_metrics(copy, (self._packed(few.inputs), few.labels, few.weights))
        x, y, weights = self._packed(self._held_out.inputs), self._held_out.labels, self._held_out.weights
        found = copy.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items() if not name.endswith("loss")}


def _sizes(
    supernet: UnitSupernet,
    form: ClosedForm,
    resource: str,
    shares: Sequence[float],
    channel_multiple: int,
    measuring: _Measuring | None,
) -> tuple[Size, tuple[Size, ...]]:
    """The full network, and one of each share."""
    full = Size(1.0, {name: form.full(name) for name in form.terms})
    if measuring is not None:
        full = dataclasses.replace(full, loss=measuring.full_loss, metrics=measuring.full_metrics, way="full")
    found = []
    for share in shares:
        bounds = form.absolute({resource: share})
        if measuring is None:
            posterior = posterior_of(form, -np.arange(form.num_units, dtype=np.float64), bounds, channel_multiple)
        else:
            posterior = measuring.posterior(form, bounds)
        architecture = posterior.mode()
        kept = np.array([mask.sum() for mask in architecture.values()])
        costs = {name: float(value) for name, value in form.counts(form.closed(kept)).items()}
        found.append(Size(share, costs, **(measuring.of(architecture) if measuring else {})))
    return full, tuple(found)
