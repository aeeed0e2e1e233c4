"""Sample: draw candidates from the posterior and at random, rank them on the validation split, keep the winner."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import rich.progress

from tfnas import baselines, data, ranking, terminal, workdir
from tfnas.architecture import Architecture
from tfnas.config import Config
from tfnas.costs import cost
from tfnas.errors import UserError
from tfnas.posterior import RESOURCES, Posterior

POSTERIOR = "posterior"
KINDS = (POSTERIOR, baselines.EVEN, baselines.ALLOCATED)


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Ranks the candidates of the search in `path`; goes on after the last one that an interrupted run evaluated.

    Raises:
        UserError: for bad settings or files, or if search has not run.
    """
    work = workdir.Workdir(path)
    work.run_stage("sample", config, lambda: _sample(config, work))


def _sample(config: Config, work: workdir.Workdir) -> None:
    splits = data.load(config.data, work.path / "tensorflow_datasets")
    supernet = keras.models.load_model(work.path / workdir.SUPERNET)
    posterior = _within_budget(Posterior.from_json((work.path / workdir.POSTERIOR).read_text()), config)
    evaluate = ranking.Evaluator(
        supernet, data.evaluation_batches(splits.validation, config.data, config.sample.batch_size)
    )
    num_random = min(config.sample.num_random, config.sample.num_candidates)
    total = config.sample.num_candidates + 2 * num_random
    key = work.key("sample", config)
    records = _Records(work, key)
    if records.done:
        print(f"sample    goes on after candidate {len(records.done)} of {total}")
    columns = (
        rich.progress.TextColumn("sample    {task.completed} of {task.total} candidates"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with records, rich.progress.Progress(*columns, console=terminal.console) as progress:
        task = progress.add_task("", total=total)
        winner: dict[str, Any] = {}
        first: dict[str, list[Architecture]] = {kind: [] for kind in KINDS}
        sizes: list[int] = []
        for number, (kind, i) in enumerate(_numbers(config.sample.num_candidates, num_random)):
            if kind == POSTERIOR:
                candidate = posterior.sample(1, config.seed, first=i)[0]
            else:
                candidate = baselines.random_candidate(posterior, supernet.graph, sizes[i], kind, config.seed, i)
            record = records.done[number] if number < len(records.done) else None
            if record is None:
                score = evaluate(candidate)
                price = cost(supernet.graph, candidate)
                record = {
                    "kind": kind,
                    "number": i,
                    "digest": candidate.digest(),
                    "loss": score.loss,
                    "accuracy": score.accuracy,
                    "parameters": price.parameters,
                    "multiply_adds": price.multiply_adds,
                    "connected": supernet.graph.flow(candidate).reaches_outputs(),
                }
                records.append(record)
            elif record["digest"] != candidate.digest():
                raise UserError(
                    f"{records.file}: line {number + 2} is not candidate {i} of '{kind}': delete the file to rank again"
                )
            if kind == POSTERIOR:
                sizes.append(record["parameters"])
            # The best random one is chosen by what the table shows, whatever ranks the posterior's: their losses are
            # mostly those of confident mistakes, and the comparison is not to flatter the posterior.
            _keep_if_better(winner, kind, record, candidate, _rank_by(kind, config))
            if i < config.sample.num_tested:
                first[kind].append(candidate)
            progress.update(task, completed=number + 1)

    _write(config, work, records.done, winner, first)


def _within_budget(posterior: Posterior, config: Config) -> Posterior:
    for resource in RESOURCES:
        share = getattr(config.sample, resource)
        if share:
            tilted = posterior.tilt(**{resource: share * posterior.total_cost(resource)})
            learned = posterior.expected_cost(resource) / posterior.total_cost(resource)
            print(f"sample    tilted from {learned:.1%} of the gated {resource.replace('_', '-')} to {share:.1%}")
            return tilted
    return posterior


def _numbers(num_candidates: int, num_random: int) -> Iterator[tuple[str, int]]:
    for kind in KINDS:
        for i in range(num_candidates if kind == POSTERIOR else num_random):
            yield kind, i


def _score(record: dict[str, Any]) -> ranking.Score:
    return ranking.Score(record["loss"], record["accuracy"])


def _rank_by(kind: str, config: Config) -> str:
    return config.sample.rank_by if kind == POSTERIOR else "accuracy"


def _keep_if_better(
    winner: dict[str, Any], kind: str, record: dict[str, Any], candidate: Architecture, by: str
) -> None:
    # One that drops every path to the output answers, always the same, but there is no network to cut out of it.
    if not record["connected"]:
        return
    if kind not in winner or ranking.order([_score(winner[kind][0]), _score(record)], by)[0] == 1:
        winner[kind] = (record, candidate)


def _write(
    config: Config,
    work: workdir.Workdir,
    records: list[dict[str, Any]],
    winner: dict[str, Any],
    first: dict[str, list[Architecture]],
) -> None:
    if POSTERIOR not in winner:
        raise UserError(
            "sample: every candidate drops every path to the output, so the posterior has collapsed: search again, in "
            f"another --workdir, with a smaller ell2 (now {config.search.ell2:g}) or gate_learning_rate (now "
            f"{config.search.gate_learning_rate:g})"
        )
    groups = {}
    for kind in KINDS:
        mine = [r for r in records if r["kind"] == kind]
        best, candidate = winner.get(kind, (None, None))
        groups[kind] = {
            **ranking.summary([_score(r) for r in mine], _rank_by(kind, config)),
            "mean_parameters": sum(r["parameters"] for r in mine) / len(mine),
            "mean_multiply_adds": sum(r["multiply_adds"] for r in mine) / len(mine),
            "best": best,
            "architecture": candidate and json.loads(candidate.to_json()),
            "first": [json.loads(architecture.to_json()) for architecture in first[kind]],  # to be measured on test
        }
    work.write_json(workdir.RANKING, {"rank_by": config.sample.rank_by, "kinds": groups})
    text = winner[POSTERIOR][1].to_json()
    work.write(workdir.ARCHITECTURE, lambda file: file.write_text(text))


class _Records:
    """Candidates' results on disk, one JSON line each with a checksum, appended as they come.

    The first line names the run; records of another run are replaced. A last line cut short by a kill is dropped.
    """

    def __init__(self, work: workdir.Workdir, key: str):
        self.file = work.file(workdir.CANDIDATES)
        self.done: list[dict[str, Any]] = []
        lines = self.file.read_bytes().split(b"\n") if self.file.exists() else [b""]
        whole = lines[:-1]  # after the last newline there is nothing, or a line cut short
        if whole and self._parse(whole[0], 1) == {"key": key}:
            self.done = [self._parse(line, i + 2) for i, line in enumerate(whole[1:])]
        work.write(
            workdir.CANDIDATES,
            lambda path: path.write_text("".join(map(self._line, [{"key": key}, *self.done]))),
        )

    def __enter__(self) -> _Records:
        self._stream = open(self.file, "a")
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()

    def append(self, record: dict[str, Any]) -> None:
        """Writes a record through to the file."""
        self._stream.write(self._line(record))
        self._stream.flush()
        self.done.append(record)

    @staticmethod
    def _line(record: dict[str, Any]) -> str:
        text = json.dumps(record)
        return f"{zlib.crc32(text.encode()):08x} {text}\n"

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        checksum, _, text = line.partition(b" ")
        if checksum.decode(errors="replace") != f"{zlib.crc32(text):08x}":
            raise UserError(f"{self.file}: line {number} was altered (its checksum differs): delete it to rank again")
        return json.loads(text)
