"""`tfnas.shrink` as a user has it: a MobileNet that was trained on CIFAR-10, made smaller with a tenth of the epochs.

    .venv/bin/python -m benchmarks.shrink_cifar10 --workdir=runs/shrink_cifar10 --data_dir=DIR [--images=15000]
        [--epochs=30] [--seed=0] [--arms=shrink,taylor] [--phases=train,shrink,test,report]

Phases, each of which resumes where it was interrupted; what has a record in the folder is not repeated:

    train     MobileNet of keras.applications (width 0.5, 32 x 32) from new weights
    shrink    each arm, with a tenth of these epochs and the same optimizer at a smaller rate
    test      one process of one thread, for which the machine should be idle: reads the test images, for all networks,
              and measures each network's latency in turns with the full one's
    report    prints the table of what is there

Arms; the sizes are shares of the multiply-adds, but for `latency`, where LiteRT's seconds are bounded:

    shrink     `tfnas.shrink` with its defaults, both sizes in one call
    free       the same without any epoch
    latency    with epochs, for half of the latency
    taylor     units by the squared first-order Taylor term of their gates, averaged over 2,000 images, all at once
               (importance 'curvature' at once); as cut, without a refit
    taylor-rounds  the same in five rounds, each of which measures the network that is left
    norm       units by group norm, the same share of every layer; as cut, without a refit
    refitted   the units of `taylor`, refitted
    ...-distilled  trained on with the full network's outputs too, at a weight of 0.5

The last 5,000 images of the training split choose. Test chooses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import tfnas
from benchmarks import records
from tfnas.common.resources import Resource
from tfnas.gating.importances import ROUNDS
from tfnas.graph.channels import Graph
from tfnas.graph.latencies import compare_latency
from tfnas.runs.workdir import Workdir
from tfnas.training.best_cut import Way, cuts
from tfnas.training.distillation import Taught, Teacher

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the records and networks.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Of tensorflow-datasets, with CIFAR-10 prepared.", required=True)
_IMAGES = flags.DEFINE_integer("images", 15_000, "Training images.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Of the training; a tenth of them follow each cut.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")
_PHASES = flags.DEFINE_list("phases", ["train", "shrink", "test", "report"], "What is done.")
_ARMS = flags.DEFINE_list("arms", None, "Of the phase 'shrink'; all if left out.")
_RECORD = records.flag()

_VALIDATION = 5_000
_BATCH_SIZE = 128
_RATE, _FURTHER_RATE = 0.1, 0.03  # of SGD, at the start of one cosine each
_DECAY = 2e-3
_SIZES = (0.5, 0.25)
_LATENCY = 0.5
_DISTILL, _TEMPERATURE = 0.5, 4.0
_CURVATURE_IMAGES, _CURVATURE_BATCH, _REFIT_IMAGES = 2_000, 20, 1_000
_CALIBRATION = 200  # images from which 8-bit ranges follow
_ROUNDS = 10  # in which two networks are measured in turns


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to smaller networks.

    Attributes:
        importance: of the units; None: `tfnas.shrink`.
        bounds: of each size.
        way: of the cut, where it is not `tfnas.shrink`.
        distill: weight of the full network's outputs.
        epochs: whether it is trained after the cut.
        rounds: in which units are dropped by curvature.
    """

    importance: str | None
    bounds: Sequence[Mapping[str, float]] = tuple({"multiply_adds": size} for size in _SIZES)
    way: Way = Way.BARE
    distill: float = 0.0
    epochs: bool = True
    rounds: int = 1


_PLAIN = {
    "shrink": Arm(None),
    "taylor": Arm("curvature"),
    "taylor-rounds": Arm("curvature", rounds=ROUNDS),
    "norm": Arm("norm"),
    "refitted": Arm("curvature", way=Way.REFITTED),
    "latency": Arm(None, [{"latency": _LATENCY}]),
}
_DISTILLED = {f"{name}-distilled": dataclasses.replace(arm, distill=_DISTILL) for name, arm in _PLAIN.items()}
ARMS = {"free": Arm(None, epochs=False), **_PLAIN, **_DISTILLED}


class Images:
    """CIFAR-10: uint8 images and their labels, of each split."""

    def __init__(self) -> None:
        splits = [f"train[:{_IMAGES.value}]", f"train[-{_VALIDATION}:]", "test"]
        found = tfds.load("cifar10", split=splits, batch_size=-1, data_dir=_DATA_DIR.value, download=False)
        self.train, self.validation, self.test = ((x["image"], x["label"]) for x in tfds.as_numpy(found))

    def batches(self) -> tf.data.Dataset:
        """Training batches in random order, with random crops and flips."""

        def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.image.random_flip_left_right(tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT"))
            return tf.image.random_crop(image, (32, 32, 3)), label

        examples = tf.data.Dataset.from_tensor_slices(self.train).shuffle(len(self.train[1]), seed=_SEED.value)
        return examples.map(augment, num_parallel_calls=2).batch(_BATCH_SIZE, drop_remainder=True).prefetch(2)


def network() -> keras.Model:
    """MobileNet with its scaling of the pixels, from images to logits."""
    keras.utils.set_random_seed(_SEED.value)
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    body = keras.applications.MobileNet((32, 32, 3), alpha=0.5, weights=None, classes=10, classifier_activation=None)
    return keras.Model(image, body(x), name="mobilenet")


def compile_for(model: keras.Model, rate: Any) -> None:
    """Compiles with the optimizer of all trainings."""
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])


def scores(model: keras.Model, images: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Loss and accuracy."""
    compile_for(model, 0.0)
    return model.evaluate(*images, batch_size=500, verbose=0, return_dict=True)


class Study:
    """A folder of networks and records, of these settings from then on."""

    def __init__(self) -> None:
        self.work = Workdir(_WORKDIR.value)
        self._commit = records.commit()  # of the code that is loaded
        self.settings = {name: flags.FLAGS[name].value for name in ("images", "epochs", "seed")}
        if (file := self.work.path / "settings.json").exists():
            if json.loads(file.read_text()) != self.settings:
                sys.exit(f"{self.work.path} holds a study with other settings: use another --workdir")
        self.work.write_json("settings.json", self.settings)

    @functools.cached_property
    def images(self) -> Images:
        """The images, once they are needed."""
        return Images()

    @property
    def full(self) -> pathlib.Path:
        """File of the trained network."""
        return self.work.path / "full.keras"

    @property
    def epochs(self) -> int:
        """Epochs of each arm."""
        return max(1, _EPOCHS.value // 10)

    def record(self, name: str) -> Any:
        """A record that was written, or None."""
        file = self.work.path / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def train(self) -> None:
        """Trains the network, unless that is done."""
        if self.record("full"):
            return
        model, batches, start = network(), self.images.batches(), time.monotonic()
        compile_for(model, keras.optimizers.schedules.CosineDecay(_RATE, _EPOCHS.value * len(batches)))
        backup = keras.callbacks.BackupAndRestore(self.work.path / "backup")
        held_out = tf.data.Dataset.from_tensor_slices(self.images.validation).batch(500)
        model.fit(batches, epochs=_EPOCHS.value, validation_data=held_out, callbacks=[backup], shuffle=False, verbose=2)
        self.work.write(self.full.name, model.save)
        found = {"validation": model.evaluate(held_out, verbose=0, return_dict=True)}
        self._write("full", {**found, **_costs(model), "seconds": time.monotonic() - start})

    def shrink(self, name: str) -> None:
        """Makes an arm's networks, but for those that are done."""
        if all(self.record(f"{name}-{i}") for i in range(len(ARMS[name].bounds))):
            return
        keras.utils.clear_session()
        print(f"arm       {name}", flush=True)
        full = keras.models.load_model(self.full, compile=False)
        compile_for(full, _FURTHER_RATE)
        (self._by_call if ARMS[name].importance is None else self._by_hand)(ARMS[name], full, name)

    def _keep(self, name: str, model: keras.Model, facts: Mapping[str, Any], start: float) -> None:
        """Writes a network and its record."""
        self.work.write(f"{name}.keras", model.save)
        self._write(name, {**facts, **_costs(model), "seconds": time.monotonic() - start})
        print(f"{name}: {facts['cut']} -> {facts['validation']}", flush=True)

    def _by_call(self, arm: Arm, full: keras.Model, name: str) -> None:
        start = time.monotonic()
        bounds: dict[str, Any] = {resource: tuple(one[resource] for one in arm.bounds) for resource in arm.bounds[0]}
        found = tfnas.shrink(
            full,
            self.images.batches(),
            self.images.validation,
            **bounds,
            epochs=self.epochs if arm.epochs else 0,
            trained=True,
            distill=arm.distill,
            temperature=_TEMPERATURE,
            device="litert",
            seed=_SEED.value,
            workdir=self.work.path / "calls" / name,
        )
        print(found, flush=True)
        for i, one in enumerate(found):
            facts = {
                "bounds": dict(one.bounds),
                "way": one.way,
                "retrained": one.retrained,
                "cut": {one.way: dict(one.after_cut)},
                "validation": dict(one.after.metrics),
                "history": [dict(record) for record in one.history],
                "widths": _widths(one.architecture),
            }
            self._keep(f"{name}-{i}", one.model, facts, start)

    def _by_hand(self, arm: Arm, full: keras.Model, name: str) -> None:
        for i, bounds in enumerate(arm.bounds):
            if self.record(f"{name}-{i}"):
                continue
            start = time.monotonic()
            facts = {"bounds": dict(bounds), "way": str(arm.way), **self._cut(arm, bounds, full)}
            model = keras.models.load_model(self.work.path / f"{facts['cuts']}-{arm.way.name}.keras", compile=False)
            keras.utils.set_random_seed(_SEED.value)
            batches = self.images.batches()
            taught = Taught(model, Teacher(full, arm.distill, _TEMPERATURE)) if arm.distill else model
            compile_for(taught, keras.optimizers.schedules.CosineDecay(_FURTHER_RATE, self.epochs * len(batches)))
            taught.fit(batches, epochs=self.epochs, shuffle=False, verbose=2)
            facts["validation"] = scores(model, self.images.validation)
            self._keep(f"{name}-{i}", model, facts, start)

    def _cut(self, arm: Arm, bounds: Mapping[str, float], full: keras.Model) -> dict[str, Any]:
        """Cuts by an arm's importance in all ways, unless that is done: what they score, and the start of their files.

        Args:
            arm: its importance and rounds.
            bounds: of the network.
            full: the trained network.
        """
        ((resource, share),) = bounds.items()
        importance = arm.importance if arm.rounds == 1 else f"{arm.importance}-rounds"
        name = f"cut-{importance}-{resource}-{share}"
        if not self.record(name):
            keras.utils.set_random_seed(_SEED.value)
            images, labels = self.images.train
            some = tf.data.Dataset.from_tensor_slices((images[:_CURVATURE_IMAGES], labels[:_CURVATURE_IMAGES]))
            supernet: Any = tfnas.gate(full, **bounds, importance="curvature", iterative=False)
            compile_for(supernet, 0.0)
            data = some.batch(_CURVATURE_BATCH) if arm.importance == "curvature" else None
            architecture = supernet.posterior(arm.importance, data, rounds=arm.rounds).mode()
            models = cuts(supernet, architecture, images[:_REFIT_IMAGES])
            found = {str(way): scores(model, self.images.validation) for way, model in models.items()}
            for way, model in models.items():
                self.work.write(f"{name}-{way.name}.keras", model.save)
            self._write(name, {"cuts": name, "cut": found, "widths": _widths(architecture)})
            print(f"{name} {found}", flush=True)
        return {key: value for key, value in self.record(name).items() if key != "made_at"}

    def test(self) -> None:
        """Reads the test images, and measures latencies, of all networks that have no such record."""
        devices = {
            "tensorflow": "tensorflow",
            "litert": Converted(self.images, 0),
            "litert_int8": Converted(self.images, _CALIBRATION),
        }
        full = keras.models.load_model(self.full, compile=False)
        files = ["full", *(f"{name}-{i}" for name, arm in ARMS.items() for i in range(len(arm.bounds)))]
        for file in files:
            if self.record(f"test-{file}") or not (self.work.path / f"{file}.keras").exists():
                continue
            model = full if file == "full" else keras.models.load_model(self.work.path / f"{file}.keras", compile=False)
            found: dict[str, Any] = {"test": scores(model, self.images.test)}
            for kind, device in devices.items():
                turns = compare_latency([full, model], device, _ROUNDS)
                found[kind] = {"seconds": turns.seconds, "ratio": turns.ratios[1], "spread": turns.spread}
                if isinstance(device, Converted):
                    found[kind] |= device.facts(model)
            print(f"test      {file}: {found}", flush=True)
            self._write(f"test-{file}", found)

    def results(self) -> dict[str, Any]:
        """Records of the networks that there are, by their files."""
        files = ["full", *(f"{name}-{i}" for name, arm in ARMS.items() for i in range(len(arm.bounds)))]
        found = {}
        for file in files:
            if record := self.record(file):
                arm = file.rpartition("-")[0] or file
                found[file] = {"arm": arm, **record, "measured": self.record(f"test-{file}")}
        return found

    def _write(self, name: str, facts: Mapping[str, Any]) -> None:
        self.work.write_json(f"{name}.json", {**facts, "made_at": self._commit})


class Converted:
    """LiteRT networks of one thread, each converted once.

    Args:
        images: whose first training images calibrate.
        calibration: number of these; 0: float32, else 8 bits.
    """

    def __init__(self, images: Images, calibration: int) -> None:
        self._images, self._calibration = images, calibration
        self._made: dict[int, tuple[keras.Model, bytes, Any]] = {}

    def _of(self, model: keras.Model) -> tuple[keras.Model, bytes, Any]:
        from ai_edge_litert.interpreter import Interpreter

        if id(model) not in self._made:
            serve = tf.function(lambda x: model(x, training=False), autograph=False)
            # With weights as constants: the calibration cannot read variables.
            function = serve.get_concrete_function(tf.TensorSpec((1, 32, 32, 3), tf.uint8))
            constant = convert_variables_to_constants_v2(function)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([constant])
            if self._calibration:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                some = self._images.train[0][: self._calibration]
                converter.representative_dataset = lambda: ([image[None]] for image in some)
            content = converter.convert()
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
            self._made[id(model)] = model, content, interpreter
        return self._made[id(model)]

    def facts(self, model: keras.Model) -> dict[str, float]:
        """Bytes of the file, and accuracy on the test images, which it answers one by one."""
        _, content, interpreter = self._of(model)
        (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
        correct = 0
        for image, label in zip(*self._images.test, strict=True):
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            correct += int(interpreter.get_tensor(answer["index"]).argmax() == label)
        return {"bytes": len(content), "accuracy": correct / len(self._images.test[1])}

    def __call__(self, model: keras.Model) -> float:
        """Median seconds of one image, as `tfnas.compare_latency` asks of a device."""
        interpreter = self._of(model)[2]
        passes = []
        for _ in range(203):
            start = time.perf_counter()
            interpreter.invoke()
            passes.append(time.perf_counter() - start)
        return float(np.median(passes[3:]))


def _costs(model: keras.Model) -> dict[str, int]:
    return dataclasses.asdict(tfnas.cost(Graph(model)))


def _widths(architecture: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in architecture.items()}


def report(found: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Prints and keeps the table, without columns of what is not there; accuracies and shares are in %."""
    record, full = records.Record(_RECORD.value), found["full"]
    cut = [f"right after the cut, {way}" for way in Way]
    latencies = [f"latency, {name}" for name in ("TensorFlow", "LiteRT", "LiteRT 8 bits")]
    trained = ["validation", "test", "test, 8 bits"]
    rows = [["network", "bound", *cut, *trained, "parameters", "multiply-adds", *latencies]]

    def add(bound: str, one: Mapping[str, Any]) -> None:
        measured = one["measured"] or {}
        cells = [one["arm"], bound]
        cells += [_percent(one.get("cut", {}).get(way, {}).get("accuracy")) for way in Way]
        cells += [_percent(one["validation"]["accuracy"]), _percent(measured.get("test", {}).get("accuracy"))]
        cells += [_percent(measured.get("litert_int8", {}).get("accuracy"))]
        cells += [_percent(one[resource] / full[resource]) for resource in ("parameters", "multiply_adds")]
        cells += [_percent(measured.get(kind, {}).get("ratio")) for kind in ("tensorflow", "litert", "litert_int8")]
        rows.append(cells)

    add("-", full)
    for bounds in (*ARMS["shrink"].bounds, *ARMS["latency"].bounds):
        ((resource, share),) = bounds.items()
        for one in found.values():
            if one.get("bounds") == bounds:
                add(f"{100 * share:.0f} % of the {Resource(resource).words}", one)
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    heading, *others = zip(*columns, strict=True)
    record.heading(*heading)
    for row in others:
        record.row(*row)
    record.keep(settings=settings, networks=found)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def main(_: Sequence[str]) -> None:
    """Does what is left to do, and prints the table."""
    phases = _PHASES.value
    if len(phases) > 1:
        for phase in phases:
            if phase != "report":
                # A process's number of threads must be set before it begins.
                threads = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"} if phase == "test" else {}
                command = [sys.executable, "-m", "benchmarks.shrink_cifar10", *sys.argv[1:], f"--phases={phase}"]
                subprocess.run(command, check=True, env={**os.environ, **threads})
        phases = [phase for phase in phases if phase == "report"]
    study = Study()
    if "train" in phases:
        study.train()
    if "shrink" in phases:
        for name in _ARMS.value or ARMS:
            study.shrink(name)
    if "test" in phases:
        study.test()
    if "report" in phases:
        report(study.results(), study.settings)


if __name__ == "__main__":
    app.run(main)
