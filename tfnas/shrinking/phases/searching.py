"""The search of a shrinking: gates, their training, and the architectures that are chosen for each size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfnas.common import markup, terminal
from tfnas.cutting.latency_bound import meet_latency
from tfnas.gating.placement import gate
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.latencies import Latencies
from tfnas.layers import BatchNormalization
from tfnas.ranking.ranking import rank
from tfnas.ranking.recalibration import Recalibration
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.shrinking import tables
from tfnas.shrinking.phases import keeping
from tfnas.shrinking.phases.fitting import Training, seconds_of_step
from tfnas.shrinking.phases.job import Job
from tfnas.shrinking.plan import Plan
from tfnas.training import networks, preflight
from tfnas.training.best_cut import best_at_once

_FORWARD = 1 / 3  # of a step, which also goes backwards: what a teacher's outputs take


class Searched:
    """A supernet, trained by a plan.

    Args:
        job: what all phases share.
        plan: epochs and settings.
        options: further arguments of `gate`.
        latencies: measured ones, if the latency is bounded.
        callbacks: of the training with gates.
        num_networks: that are retrained, at most, and each evaluated by a teacher too with `taught`: for the time.
        taught: see there.

    Attributes:
        supernet: compiled and trained.
        history: a record for each epoch.
        key: digest of all that it depends on.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        options: Mapping[str, Any],
        latencies: Latencies | None,
        callbacks: Sequence[keras.callbacks.Callback],
        num_networks: int = 1,
        taught: bool = False,
    ):
        self._job, self._plan = job, plan
        batches, gated_steps = job.batches, plan.gated * job.batches.steps
        arguments = networks.unit_arguments(plan.search, batches.num_examples, gated_steps, job.seed, latencies)
        networks.set_seed(job.seed)
        self.supernet = _as_units(gate(job.network, **{**arguments, **options}))
        self.key = keeping.key(
            of=job.key,
            settings=dataclasses.asdict(plan.search),
            epochs=[plan.warmup, plan.gated, job.epochs],
            steps=batches.steps,
            optimizer=job.compiling.optimizer,
            options={**options},
        )
        self.history: list[dict[str, Any]] = []
        job.prepare(self.supernet, job.steps, plan.warmup * batches.steps)
        self._report_time(num_networks, taught)
        self._train(callbacks)

    def _report_time(self, num_networks: int, taught: bool) -> None:
        """Says how long the trainings may take, from a few steps, and what memory these took."""
        job, plan = self._job, self._plan
        if not job.epochs:
            return
        step, building = seconds_of_step(self.supernet, job.batches)
        epochs = plan.warmup + plan.gated + num_networks * plan.retrain * (1 + taught * _FORWARD)
        trainings = (plan.warmup > 0) + (plan.gated > 0) + num_networks * (plan.retrain > 0)
        seconds = step * epochs * job.batches.steps + building * trainings
        each = f", retraining for each of {num_networks} networks," if num_networks > 1 else ""
        terminal.print_line(
            f"shrink    {job.epochs} epoch{'s' * (job.epochs > 1)} of {job.batches.steps:,} steps{each} take up to "
            f"{markup.duration(seconds)} ({tables.short_time(step)} a step of the full network with gates); "
            f"memory so far: {preflight.peak_memory() / 1e9:.1f} GB"
        )

    def _train(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        job, plan = self._job, self._plan
        if plan.warmup:
            # The supernet is made of the same layers.
            plain = self.supernet.graph.model
            job.prepare(plain, job.steps)
            training = Training("warm-up", 0, plan.warmup, job.batches)
            self._add("warm-up", training.fit(plain, job.kept.checkpoints("search/warmup", self.key)))
        if plan.gated:
            training = Training("search", plan.warmup, plan.gated, job.batches, callbacks=callbacks)
            self._add("search", training.fit(self.supernet, job.kept.checkpoints("search/gated", self.key)))

    def _add(self, phase: str, history: Sequence[Mapping[str, Any]]) -> None:
        self.history += [{"phase": phase, **record} for record in history]

    def architectures(self, sizes: Sequence[Mapping[str, float]], num_candidates: int) -> list[Architecture]:
        """The architecture that is chosen for each size.

        Args:
            sizes: bounds by resource, each.
            num_candidates: that are ranked, where the weights have adapted to gates.
        """
        job = self._job
        depends = {"of": self.key, "candidates": num_candidates, "device": job.device}

        def choose() -> list[Any]:
            return [json.loads(self._best(self._within(bounds), num_candidates).to_json()) for bounds in sizes]

        key = keeping.key(**depends, sizes=[dict(bounds) for bounds in sizes])
        found = job.kept.json("architectures", key, choose)
        return [Architecture.from_json(json.dumps(one)) for one in found]

    def _posterior(self, bounds: Mapping[str, float]) -> UnitPosterior:
        return self.supernet.posterior(data=self._gradients if self._plan.at_once else None, bounds=bounds)

    @property
    def _gradients(self) -> list[Any]:
        """Labeled batches from whose gradients curvature is computed at once."""
        some, size = self._job.some, min(networks.CURVATURE_BATCH, len(self._job.some))
        parts = [some.take(slice(i, i + size)) for i in range(0, len(some) - size + 1, size)]
        return [self._job.labeled(part) for part in parts]

    def _within(self, asked: Mapping[str, float]) -> UnitPosterior:
        """The posterior with the bounds that its candidates obey, that on the latency as measured."""
        form = self.supernet.form
        bounds = form.absolute(asked)
        form.check_reach(bounds, self.supernet.channel_multiple, asked)
        posterior = self._posterior(bounds)
        if "latency" not in bounds:
            return posterior
        found = meet_latency(posterior, self.supernet.graph, asked["latency"], self._job.device)
        terminal.print_line(
            f"shrink    latency: {found.measured:.1%} measured for the most probable network, at most "
            f"{found.asked:.1%} asked for, {found.predicted:.1%} predicted from its layers"
        )
        seconds = found.predicted * form.full("latency")
        return dataclasses.replace(posterior, bounds={**bounds, "latency": seconds})

    def _best(self, posterior: UnitPosterior, num_candidates: int) -> Architecture:
        """The best of the candidates by held-out loss."""
        job, supernet = self._job, self.supernet
        if self._plan.at_once:
            found = best_at_once(supernet, posterior, self._gradients, job.images, job.labeled(job.held_out))
            terminal.print_line(f"shrink    {found}")
            return found.posterior.mode()
        if num_candidates == 1:
            return posterior.mode()
        normalized = any(isinstance(node, BatchNormalization) for node in supernet.graph.nodes)
        statistics = Recalibration(supernet, job.few_images) if normalized else None
        candidates = posterior.sample(num_candidates, job.seed)
        ranking = rank(supernet, candidates, job.labeled(job.held_out), seed=job.seed, recalibration=statistics)
        terminal.print_line(f"shrink    {repr(ranking).strip('<>')}")
        return ranking.best


def _as_units(supernet: Any) -> UnitSupernet:
    return supernet
