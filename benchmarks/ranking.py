"""Ranking 500 candidates on 5,000 CIFAR-10 images: naive, by the engine in full, and raced.

    .venv/bin/python -m benchmarks.ranking --data_dir=DIR [--workdir=runs/ranking] [--ell2=120]

DIR holds cifar10 as tensorflow-datasets prepares it. A supernet, SupNet-M at width 16 with one block a stage on images
of 32 x 32, is searched first (minutes; once a --workdir). Then, in one run:

- naive: set the masks, `supernet.evaluate`, on every 50th candidate, before and after all else;
- engine: every candidate in full; racing: the same candidates again, from nothing, and once more with batch
  normalization recalibrated for each on 250 training images. All include tracing;
- races on 200 other orders of the same examples, simulated on the losses found in full;
- the limit: multiply-adds of the sampled networks over the fastest convolution measured here.
"""

import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import records
from tfnas.config import Config, Data, Search, Supernet, from_config_dict, to_dict
from tfnas.data import pipeline
from tfnas.graph.costs import cost
from tfnas.ranking import racing
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.ranking import Field
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Packed
from tfnas.training import networks

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where cifar10 lies.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/ranking", "Of the search.")
_RECORD = records.flag()
_CANDIDATES = flags.DEFINE_integer("candidates", 500, "How many.")
_ELL2 = flags.DEFINE_float("ell2", 250.0, "Of the search: smaller keeps more.")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Of the search.")
_REPEATS = flags.DEFINE_integer("repeats", 200, "Races on other orders of the examples.")
_BATCH = 250


def _config():
    return Config(
        data=Data(
            name="cifar10",
            data_dir=_DATA_DIR.value,
            train="train[:10000]",
            validation="train[45000:]",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.247, 0.2435, 0.2616),
            pad_crop=4,
            flip=True,
        ),
        supernet=Supernet(width=16, num_blocks=1, stem_width=16),
        search=Search(
            epochs=_EPOCHS.value,
            batch_size=100,
            learning_rate=0.1,
            ell2=_ELL2.value,
            gate_learning_rate=5.0,
        ),
    )


def _searched(work, config):
    """Searches in a process of its own, so that this one's memory is that of ranking."""
    with tempfile.TemporaryDirectory() as folder:
        settings = pathlib.Path(folder) / "settings.json"
        settings.write_text(json.dumps(to_dict(config)))
        code = (
            "import json, sys; from tfnas.config import from_config_dict; from tfnas.stages import search;"
            "search.run(from_config_dict(json.load(open(sys.argv[1]))), sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, settings, work.path], check=True)
    return keras.models.load_model(work.path / stage_table.SUPERNET)


def _naive(supernet, candidates, batches):
    """Seconds and accuracy of each candidate."""
    found = []
    for candidate in candidates:
        start = time.perf_counter()
        supernet.set_architecture(candidate)
        _, accuracy = supernet.evaluate(batches, verbose=0)
        found.append((time.perf_counter() - start, accuracy))
    return found


def _ranked(supernet, batches, candidates, confidence, recalibration=None):
    """(seconds, ranking, each candidate's losses and accuracies) of one ranking from nothing, tracing included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        engine = Engine(supernet, batches, _BATCH, seed=0, recalibration=recalibration)
        with Evaluations(pathlib.Path(folder) / "evaluations.jsonl", "benchmark") as kept:
            ranking = Field(engine, kept, candidates, "loss").race(confidence, 0.5)
            seconds = time.perf_counter() - start
            if confidence is not None:
                return seconds, ranking, None
            found = [kept.read(candidate.digest(), engine.num_examples) for candidate in candidates]
    return seconds, ranking, [np.stack([figures[name] for figures in found]) for name in ("loss", "accuracy")]


def _peak_flops():
    """Floating-point operations a second of the fastest of the network's kinds of convolution."""
    best = 0.0
    for size, channels in ((32, 16), (16, 32), (8, 64)):
        x, kernel = tf.random.normal((_BATCH, size, size, channels)), tf.random.normal((3, 3, channels, channels))
        for _ in range(12):
            start = time.perf_counter()
            tf.nn.conv2d(x, kernel, 1, "SAME").numpy()
            seconds = time.perf_counter() - start
            best = max(best, 2 * 9 * channels**2 * size**2 * _BATCH / seconds)
    return best


def _megabytes():
    """Resident memory at present (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class _Shuffled:
    """Losses already known, in another order of the examples."""

    def __init__(self, losses, order):
        self.losses, self.order = losses, order

    def fill(self, candidates, stop):
        pass

    def read(self, candidate, stop):
        return self.losses[candidate, self.order[:stop]]


def _repeated(losses, seed, repeats):
    """Repeats races in other orders: share within half a standard error of the best, at the best, evaluated."""
    means = losses.mean(1, dtype=np.float64)
    error = losses[means.argmin()].std(ddof=1) / np.sqrt(losses.shape[1])
    rows = []
    for i in range(repeats):
        order = np.random.default_rng([seed, i]).permutation(losses.shape[1])
        outcome = racing.race(_Shuffled(losses, order), *losses.shape)
        behind = means[outcome.winner] - means.min()
        rows.append((behind <= 0.5 * error, behind == 0, 1 - outcome.saved))
    return np.array(rows, float)


def main(_):
    """Prints a Markdown table and, as the last line, JSON."""
    config = from_config_dict(to_dict(_config()))
    work = workdir.Workdir(_WORKDIR.value)
    supernet = _searched(work, config)
    splits = pipeline.load(config.data, work.path / "tensorflow_datasets")
    batches = pipeline.evaluation_batches(splits.validation, config.data, _BATCH).cache()
    posterior = supernet.posterior()
    candidates = Packed(posterior.sample(_CANDIDATES.value, seed=0))
    count = len(candidates)
    every = max(1, count // 10)
    full = cost(supernet.graph).multiply_adds
    kept = statistics.mean(cost(supernet.graph, a).multiply_adds for a in candidates)
    peak = _peak_flops()

    some = [candidates[i] for i in range(0, count, every)]
    _naive(supernet, some[:1], batches)  # traces
    before = _naive(supernet, some, batches)
    memory = [_megabytes()]
    _ranked(supernet, batches, Packed(candidates[i] for i in range(count // 5)), 0.95)
    memory.append(_megabytes())
    raced_seconds, raced, _ = _ranked(supernet, batches, candidates, 0.95)
    memory.append(_megabytes())
    recalibration = networks.recalibration(config, splits, supernet)
    settled_seconds, settled, _ = _ranked(supernet, batches, candidates, 0.95, recalibration)
    full_seconds, ranking, (losses, correct) = _ranked(supernet, batches, candidates, None)
    memory.append(_megabytes())
    after = _naive(supernet, some, batches)
    num_examples = losses.shape[1]
    naive_seconds = count * statistics.mean(seconds for seconds, _ in [*before, *after])
    differ = sum(
        round(accuracy * num_examples) != correct[i].sum()
        for i, (_, accuracy) in zip(range(0, count, every), before, strict=True)
    )
    limit_seconds = count * num_examples * 2 * kept / peak
    place = ranking.order.index(raced.outcome.winner) + 1
    repeated = _repeated(losses, 1, _REPEATS.value)

    decided, groups = posterior.decided()
    print(
        f"\n{count} candidates, {len({a.digest() for a in candidates})} distinct; {decided} of {groups} gates decided; "
        f"{kept / 1e6:.2f} M of {full / 1e6:.2f} M multiply-adds kept on average; {num_examples:,} images\n"
    )
    record = records.Record(_RECORD.value)
    record.heading("ranking", "seconds", "candidates a second", "over naive", "example evaluations")
    rows = [
        (f"naive, from {len(some)} candidates twice", naive_seconds, 1.0),
        ("engine, in full", full_seconds, 1.0),
        ("engine, racing at 95 %", raced_seconds, 1 - raced.outcome.saved),
        ("the same, statistics of its own for every candidate", settled_seconds, 1 - settled.outcome.saved),
        ("limit without sharing: multiply-adds over peak", limit_seconds, 1.0),
    ]
    for name, seconds, share in rows:
        evaluations = f"{share * count * num_examples:,.0f} ({100 * share:.1f} %)"
        record.row(name, f"{seconds:.1f}", f"{count / seconds:.2f}", f"{naive_seconds / seconds:.2f}", evaluations)
    drift = statistics.mean(s for s, _ in after) / statistics.mean(s for s, _ in before)
    print(f"\nNaive after all else took {drift:.2f} x its time before. Peak: {peak / 1e9:.0f} GFLOP/s.")
    print(f"Count of correct examples: {differ} of {len(some)} candidates differ from `evaluate`'s.")
    print(f"The raced winner has place {place} of {count} in the full ranking; {len(raced.outcome.ties)} tie with it.")
    near, exact, share = repeated.mean(0)
    twenty = int(repeated[:20, 0].sum())
    print(
        f"{_REPEATS.value} other orders: within half a standard error of the best {100 * near:.1f} % (of the first 20: "
        f"{twenty}), the best itself in {100 * exact:.1f} %; {100 * share:.1f} % of the examples evaluated."
    )
    print(
        f"Memory, MB: {memory[0]:.0f} before, {memory[1]:.0f} after a race of {count // 5} candidates, "
        f"{memory[2]:.0f} after one of {count}, {memory[3]:.0f} after all in full."
    )
    record.keep(seconds={name: seconds for name, seconds, _ in rows}, near=near, place=place)


if __name__ == "__main__":
    app.run(main)
