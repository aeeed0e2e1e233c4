"""Converts an exported network to LiteRT, ONNX and OpenVINO, in float32 and 8 bits, and scores it in their runtimes.

Each file takes raw inputs by name, images uint8 (N, H, W, C) of the network's own size or values float32 (N, ...), for
any N, and returns the first of the task's answers, such as probabilities, float32 (N, ...). Scaling and standardization
of images are included, resizing is not. The packages are the optional extra 'formats'. They are imported where they are
used, after TensorFlow, and only if one of these formats is requested.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfnas.common import installation, terminal
from tfnas.common.errors import UserError, brief
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.runs.measured import Converted
from tfnas.tasks.columns import Tally
from tfnas.training import distribution

Raw = Mapping[str, np.ndarray]  # inputs by name, (N, ...)
Predict = Callable[[Raw], np.ndarray]

_FILES = {
    "litert": "model.tflite",
    "litert_int8": "model.tflite",
    "onnx": "model.onnx",
    "onnx_int8": "model.onnx",
    "openvino": "model.xml",
}
_PACKAGES = {
    "litert": ("ai_edge_litert",),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "openvino": ("onnx", "tf2onnx", "openvino"),
}
_OPSET = 18  # ONNX opset, the newest that tf2onnx writes
_TOLERANCE = 1e-4  # of float32 probabilities, because other runtimes sum in another order
_BATCH = 64


def require(formats: Sequence[str]) -> None:
    """Checks, without importing them, that the packages of `formats` are installed.

    Raises:
        UserError: naming the missing packages and the extra that contains them.
    """
    needed = {package for name in formats for package in _PACKAGES[name.removesuffix("_int8")]}
    installation.require("formats", needed, f"export.formats: {','.join(formats)}")


def convert(
    model: keras.Model, splits: pipeline.Splits, config: Config, formats: Sequence[str], folder: pathlib.Path
) -> list[Converted]:
    """Writes `model` to `folder/FORMAT/model.*` in each format. If one fails, discard the folder.

    The test split is read once, after all conversions, and not at all if there is nothing to score.

    Args:
        model: model from float32 inputs (N, ...), of images standardized ones, to the task's outputs; not changed.
        splits: training examples calibrate 8 bits, a validation batch is compared, the test examples are scored.
        config: settings of the standardization and of the number of calibration images.
        formats: names of `config.FORMATS`.
        folder: empty temporary folder.

    Returns:
        For each format, in the order of `formats`, the files relative to `folder`, the first metric of the task by the
        format's own runtime, and the largest difference on the validation batch.

    Raises:
        UserError: if a package is missing, a converter or runtime refuses the network, or a float32 format's answers
            differ by more than 1e-4, of the largest if that is above 1.
    """
    require(formats)
    if not formats:
        return []
    network = _Network(model, splits, config)
    compared = next(iter(splits.validation.batch(_BATCH)))[0]
    expected = network.answers(compared)
    tolerance = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if any(name.endswith("_int8") for name in formats):
        network.calibrate()
    predictors, differences, same = {}, {}, {}
    headline = splits.task.facts.headline
    for name in formats:
        predictors[name], answer = _written(network, name, folder, network.by_name(compared))
        differences[name] = float(np.abs(answer - expected).max())
        same[name] = _agreement(answer, expected, splits.inputs.nouns) if splits.task.facts.exact else ""
        if not name.endswith("_int8") and not differences[name] <= tolerance:
            raise UserError(
                f"export.formats: the network as '{name}' differs by {differences[name]:.1e} in an answer, more "
                f"than {tolerance:.0e}; leave '{name}' out, and please report it with your config"
            )
    metrics = _metrics(network, splits, predictors)
    converted = [
        Converted(
            format=name,
            file=f"{name}/{_FILES[name]}",
            bytes=sum(file.stat().st_size for file in (folder / name).iterdir()),
            test=metrics[name],
            change=metrics[name] - metrics["keras"],
            largest_difference=differences[name],
        )
        for name in formats
    ]
    for one in converted:
        terminal.console.print(
            f"export    {one.format}: {one.bytes:,} bytes, test {headline.title} {headline.exactly(one.test)} "
            f"({headline.changed(one.change)}); {same[one.format]}{splits.task.primary} within "
            f"{one.largest_difference:.1e} of {'its' if splits.task.facts.exact else 'the Keras model'}"
        )
    return converted


def load(name: str, file: str | os.PathLike[str]) -> Predict:
    """Loads a file that `convert` wrote, in the runtime of its format, on the CPU.

    Args:
        name: name of the format, one of `config.FORMATS`.
        file: path of its 'model.*'.

    Returns:
        A function from raw inputs by name, (N, ...), any N, to the first of the task's answers, float32 (N, ...).
    """
    return {"litert": _load_litert, "onnx": _load_onnx, "openvino": _load_openvino}[name.removesuffix("_int8")](
        os.fspath(file)
    )


class _Network:
    """A model with its preprocessing, as input of the converters.

    Attributes:
        module: module with one function, `serve`, from raw inputs to a dict of one answer. Its weights are constants,
            because converters omit Keras's variables from their files.
        calibration: training inputs without augmentation, by name, (at most `export.calibration`, ...); after
            `calibrate` only.
    """

    calibration: Raw

    def __init__(self, model: keras.Model, splits: pipeline.Splits, config: Config):
        self.splits = splits
        self.config = config
        spec, primary = splits.raw, splits.task.primary

        def answer(standard: Any) -> tf.Tensor:
            outputs = tf.cast(model(standard, training=False), tf.float32)
            return splits.task.answer(outputs, splits.label_names)[primary]

        def serve(raw: Any) -> tf.Tensor:
            return answer(pipeline.standardize(raw, config.data))

        standard = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, tf.float32), spec)

        def exact(standard: Any) -> tf.Tensor:
            with tf.device("CPU:0"):  # like the runtimes it is compared with
                return answer(standard)

        self._exact = tf.function(exact, input_signature=[standard], autograph=False)
        with terminal.errors_expected():
            constant = convert_variables_to_constants_v2(
                tf.function(serve, input_signature=[spec], autograph=False).get_concrete_function()
            )
        self.module = tf.Module()
        self.module.serve = tf.function(
            lambda raw: {primary: constant(*tf.nest.flatten(raw))[0]}, input_signature=[spec], autograph=False
        )

    def by_name(self, raw: Any) -> Raw:
        """Returns a batch of inputs as the runtimes take it."""
        return {name: np.asarray(x) for name, x in self.splits.inputs.unpacked(raw).items()}

    def answers(self, raw: Any) -> np.ndarray:
        """Returns the Keras model's answers for a batch, computed on the CPU."""
        with distribution.full_precision():
            return self._exact(pipeline.standardize(raw, self.config.data)).numpy()

    @functools.cached_property
    def onnx(self) -> Any:
        """Returns the ONNX model, which OpenVINO reads too."""
        import onnx
        import tf2onnx

        serve = self.module.serve
        model, _ = tf2onnx.convert.from_function(serve, input_signature=serve.input_signature, opset=_OPSET)
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "N"
        onnx.checker.check_model(model)
        return model

    def calibrate(self) -> None:
        """Draws `calibration` from the whole training split, which may be sorted by class, deterministically."""
        size = self.splits.sizes["train"]
        number = min(self.config.export.calibration, size)
        chosen = tf.constant(np.random.default_rng(0).choice(size, number, replace=False))
        examples = (
            self.splits.train.enumerate()
            .filter(lambda i, _: tf.reduce_any(i == chosen))
            .map(lambda _, example: pipeline.prepare(example[0], self.config.data))
        )
        self.calibration = self.by_name(next(iter(examples.batch(number))))


def _written(network: _Network, name: str, folder: pathlib.Path, raw: Raw) -> tuple[Predict, np.ndarray]:
    """Writes one format into `folder`; returns its prediction function, and its predictions for `raw`."""
    file = folder / name / _FILES[name]
    file.parent.mkdir()
    writers: dict[str, Callable[[_Network, pathlib.Path], None]] = {
        "litert": _write_litert,
        "litert_int8": functools.partial(_write_litert, int8=True),
        "onnx": _write_onnx,
        "onnx_int8": _write_onnx_int8,
        "openvino": _write_openvino,
    }
    try:
        # The converters write to standard error, nothing that a user could act on; failures are exceptions.
        with terminal.errors_expected(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writers[name](network, file)
            predict = load(name, file)
            return predict, predict(raw)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = brief(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UserError(
            f"export.formats: the network cannot be converted to '{name}': {reason}; leave '{name}' out"
        ) from error


def _write_litert(network: _Network, file: pathlib.Path, int8: bool = False) -> None:
    function = network.module.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network.module)
    if int8:

        def examples() -> Iterator[list[np.ndarray]]:
            order = [spec.name for spec in tf.nest.flatten(network.splits.raw)]
            number = len(network.calibration[order[0]])
            return ([network.calibration[name][i : i + 1] for name in order] for i in range(number))

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
    file.write_bytes(converter.convert())


def _write_onnx(network: _Network, file: pathlib.Path) -> None:
    file.write_bytes(network.onnx.SerializeToString())


def _write_onnx_int8(network: _Network, file: pathlib.Path) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Batches of the calibration inputs."""

        def __init__(self) -> None:
            inputs = network.calibration
            number = len(next(iter(inputs.values())))
            parts = (slice(i, i + _BATCH) for i in range(0, number, _BATCH))
            self.batches = iter([{name: x[part] for name, x in inputs.items()} for part in parts])

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Returns the next batch, or None after the last."""
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        exact, prepared = (os.path.join(folder, name) for name in ("exact.onnx", "prepared.onnx"))
        _write_onnx(network, pathlib.Path(exact))  # a model in memory would be modified
        quantization.shape_inference.quant_pre_process(exact, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(prepared, file, Reader(), per_channel=True)


def _write_openvino(network: _Network, file: pathlib.Path) -> None:
    # Through ONNX, because OpenVINO converts the TensorFlow graph of some subnets to a convolution that it rejects.
    openvino = _openvino()
    model = openvino.Core().read_model(network.onnx.SerializeToString())
    openvino.save_model(model, file, compress_to_fp16=False)


def _load_litert(file: str) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=os.cpu_count())
    (answer,) = interpreter.get_output_details()
    # The names of a signature's inputs, as TensorFlow's converter extends them.
    taken = {
        one["name"].removeprefix("serving_default_").partition(":")[0]: one["index"]
        for one in interpreter.get_input_details()
    }
    allocated: dict[str, tuple[int, ...]] = {}

    def predict(raw: Raw) -> np.ndarray:
        nonlocal allocated
        if (shapes := {name: x.shape for name, x in raw.items()}) != allocated:  # for one batch size
            for name, shape in shapes.items():
                interpreter.resize_tensor_input(taken[name], shape)
            interpreter.allocate_tensors()
            allocated = shapes
        for name, x in raw.items():
            interpreter.set_tensor(taken[name], x)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return predict


def _load_onnx(file: str) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda raw: session.run(None, dict(raw))[0]


def _load_openvino(file: str) -> Predict:
    # By default, OpenVINO computes in bfloat16 if the CPU supports it.
    network = _openvino().Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda raw: network(dict(raw))[0]


def _openvino() -> Any:
    """Imports OpenVINO without its telemetry: if that cannot be imported, OpenVINO uses a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _agreement(answer: np.ndarray, expected: np.ndarray, nouns: str) -> str:
    """Number of examples that are classified as by the network, in words."""
    same = int(np.sum(answer.argmax(-1) == expected.argmax(-1)))
    return f"{same} of {len(expected)} validation {nouns} classified like the Keras model, "


def _metrics(network: _Network, splits: pipeline.Splits, predictors: dict[str, Predict]) -> dict[str, float]:
    """Returns the first test metric of each predictor, and of the Keras model as 'keras'; the split is read once."""
    tallies = {name: Tally(splits.task, splits.num_outputs) for name in ("keras", *predictors)}
    for raw, targets, *_ in splits.test.batch(_BATCH):
        answers = {"keras": network.answers(raw)}
        answers |= {name: predict(network.by_name(raw)) for name, predict in predictors.items()}
        for name, answer in answers.items():
            tallies[name].update(targets, tf.constant(answer))
    return {name: splits.task.facts.headline.of(tally.metrics()) for name, tally in tallies.items()}
