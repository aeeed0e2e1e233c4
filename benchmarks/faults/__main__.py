"""The command. See `benchmarks.faults`."""

import concurrent.futures
import contextlib
import pathlib
import tempfile
import time

from absl import app, flags, logging

from benchmarks import records
from benchmarks.faults.damage import damage
from benchmarks.faults.disk import disk, in_namespace
from benchmarks.faults.kills import kills, shrink_kills
from benchmarks.faults.load import load
from benchmarks.faults.reference import Reference

_PARTS = flags.DEFINE_list("parts", ["kills", "shrink", "disk", "damage", "load"], "Which of the five.")
_KILLS = flags.DEFINE_integer("kills", 50, "Runs that are killed, and calls of `tfnas.shrink`.")
_SIZES = flags.DEFINE_integer("sizes", 4, "Sizes of the disk on which each stage runs out of space.")
_DAMAGE = flags.DEFINE_integer("damage", 200, "Files that are damaged.")
_MINUTES = flags.DEFINE_float("minutes", 10, "Of load.")
_PARALLEL = flags.DEFINE_integer("parallel", 2, "Runs side by side.")
_RECORD = records.flag()
_SEED = flags.DEFINE_integer("seed", 0, "Of moments, sizes and damages.")


def _undisturbed(folder, parallel):
    """Runs of the published search, and of the default one, which drops units in steps.

    As many side by side as later, so that moments and sizes are drawn from wall times like theirs.
    """
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        importances = ("gates", "curvature")
        return [*pool.map(lambda name: Reference(folder, name, [f"--config.search.importance={name}"]), importances)]


def main(_):
    """Prints what happens as it happens and, at the end, a Markdown table of counts and seconds."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    record = records.Record(_RECORD.value)
    parts, parallel, seed = set(_PARTS.value), _PARALLEL.value, _SEED.value
    skipped = in_namespace() if "disk" in parts else ""
    if skipped:
        parts.remove("disk")
    rows, seconds = [], {}

    @contextlib.contextmanager
    def timed(part):
        begin = time.monotonic()
        yield
        seconds[part] = time.monotonic() - begin

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if parts & {"kills", "disk"}:
            with timed("undisturbed"):
                references = _undisturbed(folder, parallel)
        if "kills" in parts:
            with timed("kills"):
                rows += kills(folder, references, _KILLS.value, parallel, seed)
        if "shrink" in parts:
            with timed("shrink"):
                rows += shrink_kills(folder, _KILLS.value, parallel, seed)
        if "disk" in parts:
            with timed("disk"):
                rows += disk(folder, references[0], _SIZES.value, parallel, seed)
        if "damage" in parts:
            with timed("damage"):
                rows += damage(folder, _DAMAGE.value, seed)
        if "load" in parts:
            with timed("load"):
                rows += load(folder, _MINUTES.value, seed)
    record.heading("case", "number", "as expected")
    for title, number, good in rows:
        record.row(title, str(number), str(good))
    if skipped:
        print(f"\ndisk: skipped, because nothing can be mounted here ({skipped}).")
    record.keep(seconds={part: round(value) for part, value in seconds.items()})


if __name__ == "__main__":
    app.run(main)
