"""The run that nothing befalls, and what those that are disturbed are to have in common with it."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tfnas.common import terminal

tf = terminal.load_tensorflow()
import keras  # noqa: E402  after TensorFlow, whose greeting is held back

import tfnas.gating.supernet  # noqa: E402, F401  registers the layers of a supernet's file, as does
import tfnas.gating.unit_supernet  # noqa: E402, F401  that of one with channel units
from tfnas import config  # noqa: E402
from tfnas.data import pipeline  # noqa: E402
from tfnas.runs import stage_table  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = tuple(stage_table.STAGES)

_SETTINGS = [
    f"--config={ROOT / 'configs' / 'digits.py'}",
    "--config.data.train=train[:500]",
    "--config.supernet.width=4",
    "--config.supernet.stem_width=4",
    "--config.search.epochs=3",
    "--config.search.learning_rate=0.2",
    "--config.sample.num_candidates=16",
    "--config.sample.num_random=4",
    "--config.sample.num_tested=4",
    "--config.sample.budgets=0.6",
    "--config.retrain.epochs=2",
    "--config.evaluate.threshold=0.5",  # after so few epochs
    "--config.evaluate.max_drop=0.5",
]
# What is to be equal, byte for byte, by the stage that writes it. Of the rest only times and measured seconds may
# differ, or it is compared by its content.
_EXACT = {
    "search": ("search/history.jsonl", "posterior.json"),
    "sample": ("sample/candidates.jsonl", "sample/ranking.json", "sample/front.json", "architecture.json"),
    "retrain": ("retrain/architecture.json",),
    "evaluate": ("evaluation.json",),
    "export": ("export/digits/architecture.json", "export/digits/labels.txt"),
    "report": (),
}
_MODELS = {"search": "search/supernet.keras", "retrain": "retrain/subnet.keras"}
SAVED_MODEL = "export/digits/1"


class Reference:
    """The undisturbed run.

    Attributes:
        path: its working directory.
        before: by stage, the working directory as it was before.
        seconds: by stage, wall time of its process.
    """

    def __init__(self, folder, name, settings=(), shards=False):
        self.settings = [*_SETTINGS, *settings]
        self.path = folder / name
        self.before, self.seconds = {}, {}
        for stage in STAGES:
            self.before[stage] = folder / f"{name}-before-{stage}"
            if self.path.exists():
                shutil.copytree(self.path, self.before[stage])
            else:
                self.before[stage].mkdir()
            if stage == "sample" and shards:
                for part in ("1/2", "2/2"):
                    self._run("sample", f"--shard={part}")
            start = time.monotonic()
            self._run(stage)
            self.seconds[stage] = time.monotonic() - start

    @functools.cached_property
    def evidence(self):
        """Returns the results that others must equal."""
        return evidence(self.path)

    def _run(self, stage, *more):
        done = subprocess.run(
            command(stage, self.path, *self.settings, *more), cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{stage} of the undisturbed run failed:\n{done.stderr}")

    def total(self):
        """Seconds of all stages."""
        return sum(self.seconds.values())


def command(stage, path, *settings):
    """Returns the command line of a user."""
    return [sys.executable, "-m", "tfnas.cli", stage, f"--workdir={path}", *settings]


@functools.cache
def images():
    """The raw validation images: uint8."""
    with tempfile.TemporaryDirectory() as folder:
        splits = pipeline.load(config.Data(), pathlib.Path(folder))
        return tf.stack([image for image, _ in splits.validation])


def predictions(path):
    """Bits of the probabilities and labels that a SavedModel answers the validation images with."""
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](image=images())
    return answer["probabilities"].numpy().tobytes(), answer["classes"].numpy().tolist()


def weights(path):
    """Every weight of a .keras file, as bytes."""
    return [weight.tobytes() for weight in keras.models.load_model(path, compile=False).get_weights()]


def results(path):
    """retrain/results.json without what is measured in seconds."""
    found = json.loads((path / "retrain/results.json").read_text())
    found.pop("latency_spread", None)
    for row in found["rows"]:
        row.pop("latency_seconds", None)
    return found


def evidence(path, stages=STAGES):
    """Returns by name everything that must be equal in the results of the stages."""
    found = {}
    for stage in stages:
        found |= {name: (path / name).read_bytes() for name in _EXACT[stage]}
        if stage in _MODELS:
            found[_MODELS[stage]] = weights(path / _MODELS[stage])
        if stage == "retrain":
            found["retrain/results.json"] = results(path)
        if stage == "export":
            found["predictions"] = predictions(path / SAVED_MODEL)
    return found


def differences(found, expected):
    """Names of what is not equal."""
    return [name for name, value in found.items() if value != expected[name]]


def names(path):
    """Files in a working directory. TensorBoard begins another one whenever a search resumes."""
    files = {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
    return {str(file.parent) if file.parts[0] == "tensorboard" else str(file) for file in files}


def start(folder, reference, stage):
    """A working directory in `folder` as it was before a stage."""
    path = folder / "run"
    shutil.copytree(reference.before[stage], path, dirs_exist_ok=True)
    return path


def environment(folder):
    """Returns an environment with its own folder for temporary files, which a kill leaves behind."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(folder / "tmp")}
