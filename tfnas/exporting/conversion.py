"""An exported network in other formats: LiteRT, ONNX, OpenVINO, in float32 and in 8 bits, scored in their own runtimes.

Each file takes raw pixels, uint8 (N, H, W, C) of the network's own size and any N, and gives probabilities, float32
(N, classes): scaling, mean and standard deviation are inside, resizing is not. The packages are the optional extra
'formats', and are imported only where they are used: after TensorFlow, and only if one of these formats is asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfnas.common import terminal
from tfnas.common.errors import UserError, brief
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.runs.measured import Converted
from tfnas.training import distribution

Predict = Callable[[np.ndarray], np.ndarray]

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
_OPSET = 18  # of ONNX: the newest that tf2onnx writes
_TOLERANCE = 1e-4  # of probabilities in float32: other runtimes sum in another order
_BATCH = 64


def require(formats: Sequence[str]) -> None:
    """Looks, without importing anything, whether what `formats` need is installed.

    Raises:
        UserError: naming the packages that are missing, and the extra that brings them.
    """
    needed = {package for name in formats for package in _PACKAGES[name.removesuffix("_int8")]}
    missing = sorted(package for package in needed if importlib.util.find_spec(package) is None)
    if missing:
        raise UserError(
            f"export.formats: {','.join(formats)} needs {', '.join(missing)}, not installed here: "
            "pip install 'tfnas[formats]'"
        )


def convert(
    model: keras.Model, splits: pipeline.Splits, config: Config, formats: Sequence[str], folder: pathlib.Path
) -> list[Converted]:
    """Writes `model` to `folder/FORMAT/model.*` in each format. What is there if one fails is to be thrown away.

    The test split is read once, after all is converted, and not at all if there is nothing to score.

    Args:
        model: from standardised float32 images (N, H, W, C) to logits (N, classes); not changed.
        splits: the training images calibrate 8 bits, a validation batch compares, the test images score.
        config: says how pixels are standardised, and how many images calibrate.
        formats: names of `config.FORMATS`.
        folder: empty, for what is not whole yet.

    Returns:
        For each format, in the order of `formats`, the files relative to `folder`, the accuracy by the format's own
        runtime, and the largest difference on the validation batch.

    Raises:
        UserError: if a package is missing, a converter or runtime refuses the network, or a float32 format's
            probabilities differ by more than 1e-4.
    """
    require(formats)
    if not formats:
        return []
    network = _Network(model, splits, config)
    images, _ = next(iter(splits.validation.batch(_BATCH)))
    expected = network.probabilities(images)
    if any(name.endswith("_int8") for name in formats):
        network.calibrate()
    predictors, differences, alike = {}, {}, {}
    for name in formats:
        predictors[name], answer = _written(network, name, folder, images.numpy())
        differences[name] = float(np.abs(answer - expected).max())
        alike[name] = int(np.sum(answer.argmax(-1) == expected.argmax(-1)))
        if not name.endswith("_int8") and not differences[name] <= _TOLERANCE:
            raise UserError(
                f"export.formats: the network as '{name}' differs by {differences[name]:.1e} in a probability, at most "
                f"{_TOLERANCE:.0e} expected; leave '{name}' out, and please report it with your config"
            )
    accuracies = _accuracies(network, splits, predictors)
    converted = [
        Converted(
            format=name,
            file=f"{name}/{_FILES[name]}",
            bytes=sum(file.stat().st_size for file in (folder / name).iterdir()),
            test_accuracy=accuracies[name],
            test_accuracy_change=100 * (accuracies[name] - accuracies["keras"]),
            largest_difference=differences[name],
        )
        for name in formats
    ]
    for one in converted:
        terminal.console.print(
            f"export    {one.format}: {one.bytes:,} bytes, test accuracy {one.test_accuracy:.2%} "
            f"({one.test_accuracy_change:+.2f} points); {alike[one.format]} of {len(expected)} validation images "
            f"classified as the Keras model does, their probabilities at most {one.largest_difference:.1e} from its"
        )
    return converted


def load(name: str, file: str | os.PathLike[str]) -> Predict:
    """The network of a file that `convert` wrote, in the runtime of its format, on the CPU.

    Args:
        name: of the format, one of `config.FORMATS`.
        file: 'model.*' of it.

    Returns:
        A function from images, uint8 (N, H, W, C), any N, to probabilities, float32 (N, classes).
    """
    return {"litert": _load_litert, "onnx": _load_onnx, "openvino": _load_openvino}[name.removesuffix("_int8")](
        os.fspath(file)
    )


class _Network:
    """A model with what surrounds it, as the converters take it.

    Attributes:
        module: with one function, `serve`, from pixels to a dict of probabilities; the weights are constants in it,
            because a converter that is given Keras's variables leaves them out of its file.
        calibration: training images without augmentation, uint8 (at most `export.calibration`, H, W, C); after
            `calibrate` only.
    """

    calibration: np.ndarray

    def __init__(self, model: keras.Model, splits: pipeline.Splits, config: Config):
        self.splits = splits
        self.config = config
        spec = tf.TensorSpec((None, *splits.image_shape), tf.uint8, name="image")

        def serve(image: tf.Tensor) -> tf.Tensor:
            return tf.nn.softmax(model(pipeline.standardize(image, config.data), training=False))

        pixels = tf.TensorSpec((None, *splits.image_shape), tf.float32)

        def exact(pixels: tf.Tensor) -> tf.Tensor:
            with tf.device("CPU:0"):  # as the runtimes that are compared with it
                return tf.nn.softmax(model(pixels, training=False))

        self._exact = tf.function(exact, input_signature=[pixels], autograph=False)
        with terminal.errors_expected():
            constant = convert_variables_to_constants_v2(
                tf.function(serve, input_signature=[spec], autograph=False).get_concrete_function()
            )
        self.module = tf.Module()
        self.module.serve = tf.function(
            lambda image: {"probabilities": constant(image)[0]}, input_signature=[spec], autograph=False
        )

    def probabilities(self, images: tf.Tensor) -> np.ndarray:
        """What the Keras model itself makes of a batch, on the CPU."""
        with distribution.full_precision():
            return self._exact(pipeline.standardize(images, self.config.data)).numpy()

    @functools.cached_property
    def onnx(self) -> Any:
        """The ONNX model, which OpenVINO reads too."""
        import onnx
        import tf2onnx

        serve = self.module.serve
        model, _ = tf2onnx.convert.from_function(serve, input_signature=serve.input_signature, opset=_OPSET)
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "N"
        onnx.checker.check_model(model)
        return model

    def calibrate(self) -> None:
        """Draws `calibration` from all of the training split, which may lie sorted by class; the same every time."""
        size = self.splits.sizes["train"]
        number = min(self.config.export.calibration, size)
        chosen = tf.constant(np.random.default_rng(0).choice(size, number, replace=False))
        images = (
            self.splits.train.enumerate()
            .filter(lambda i, _: tf.reduce_any(i == chosen))
            .map(lambda _, example: pipeline.prepare(example[0], self.config.data))
        )
        self.calibration = np.stack([*images.as_numpy_iterator()])


def _written(network: _Network, name: str, folder: pathlib.Path, images: np.ndarray) -> tuple[Predict, np.ndarray]:
    """Writes one format into `folder`; returns its function, and that function's answer to `images`."""
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
        # The converters talk on standard error, of nothing that a user could mend; what fails is an exception.
        with terminal.errors_expected(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writers[name](network, file)
            predict = load(name, file)
            return predict, predict(images)
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
            return ([image[None]] for image in network.calibration)

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
    file.write_bytes(converter.convert())


def _write_onnx(network: _Network, file: pathlib.Path) -> None:
    file.write_bytes(network.onnx.SerializeToString())


def _write_onnx_int8(network: _Network, file: pathlib.Path) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Batches of the calibration images."""

        def __init__(self) -> None:
            images = network.calibration
            self.batches = iter([images[i : i + _BATCH] for i in range(0, len(images), _BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch; None after the last."""
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        exact, prepared = (os.path.join(folder, name) for name in ("exact.onnx", "prepared.onnx"))
        _write_onnx(network, pathlib.Path(exact))  # a model given in memory would be altered
        quantization.shape_inference.quant_pre_process(exact, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(prepared, file, Reader(), per_channel=True)


def _write_openvino(network: _Network, file: pathlib.Path) -> None:
    # By way of ONNX: of the TensorFlow graph of some cut networks OpenVINO makes a convolution that it then refuses.
    openvino = _openvino()
    model = openvino.Core().read_model(network.onnx.SerializeToString())
    openvino.save_model(model, file, compress_to_fp16=False)


def _load_litert(file: str) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=os.cpu_count())
    (image,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape: tuple[int, ...] = ()

    def predict(images: np.ndarray) -> np.ndarray:
        nonlocal shape
        if images.shape != shape:  # tensors are allocated for one size of batch
            interpreter.resize_tensor_input(image["index"], images.shape)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(probabilities["index"])

    return predict


def _load_onnx(file: str) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _load_openvino(file: str) -> Predict:
    # Where the CPU has bfloat16, OpenVINO would compute in that without being asked.
    network = _openvino().Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: network(images)["probabilities"]


def _openvino() -> Any:
    """The package, told not to report its use: where its reporter cannot be imported, it has one that does nothing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _accuracies(network: _Network, splits: pipeline.Splits, predictors: dict[str, Predict]) -> dict[str, float]:
    """Share of the test images that each gets right, and the Keras model, as 'keras'; the images are read once."""
    right = dict.fromkeys(("keras", *predictors), 0)
    number = 0
    for images, labels in splits.test.batch(_BATCH):
        number += len(labels)
        pixels = images.numpy()
        answers = {"keras": network.probabilities(images)}
        answers |= {name: predict(pixels) for name, predict in predictors.items()}
        for name, probabilities in answers.items():
            right[name] += int((probabilities.argmax(-1) == labels.numpy()).sum())
    return {name: count / number for name, count in right.items()}
