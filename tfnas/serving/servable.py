"""A SavedModel that answers requests, in JSON or in messages, as TensorFlow Serving reads and answers them."""

from __future__ import annotations

import base64
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2, saved_model_pb2

from tfnas.common.errors import UserError, brief, plain_message
from tfnas.serving import versions

DEFAULT_SIGNATURE = "serving_default"
_MOST_REPEATED = 2**24  # values of an input that is not written out: a few bytes may stand for any number of equal ones
_LONGEST = 2000  # characters of a message: it goes into the trailer of a gRPC answer, which holds 8 KiB


class RequestError(Exception):
    """A request that is not answered. The message names the thing, the value expected and the value received.

    Attributes:
        code: name of the gRPC status.
    """

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message[:_LONGEST])
        self.code = code


class Model:
    """The newest version of an exported model.

    Attributes:
        name: in requests.
        version: the folder's.
        signature_defs: the SignatureDefs by name, as the SavedModel has them.
    """

    def __init__(self, name: str, base_path: str | os.PathLike[str], max_images: int) -> None:
        """Loads it, and answers the warm-up requests that lie in it.

        Args:
            name: in requests.
            base_path: folder of the model, with one for each version.
            max_images: that a request may have: computing with one takes many times the memory of its pixels.

        Raises:
            UserError: if `base_path` has no version, or the newest is not a SavedModel.
        """
        path = versions.newest(base_path, "base_path")
        self.name = name
        self.version = int(path.name)
        self.max_images = max_images
        try:
            self._loaded = tf.saved_model.load(path)
            stored = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        except Exception as error:  # whatever a damaged file makes TensorFlow or protobuf raise
            reason = f"{type(error).__name__}: {brief(str(error))}"
            raise UserError(f"{path}: a SavedModel expected. Received: {reason}") from error
        self.signature_defs = stored.meta_graphs[0].signature_def
        self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, Any] | list[Any],
        tensor: Callable[[str, Any, Any], Any],
        outputs: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """The answer of one signature, by the outputs' names.

        Args:
            signature_name: '' is the default's.
            inputs: their values by name, or that of the only one.
            tensor: makes the tensor of an input's name, its TensorSpec and its value.
            outputs: names of those wanted; none is all.

        Raises:
            RequestError: if the request does not fit the signature, or the signature itself refuses it.
        """
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self._loaded.signatures:
            known = _listed(self._loaded.signatures)
            raise RequestError(
                f"signature_name: one of {known} expected. Received: {brief(name)}", "FAILED_PRECONDITION"
            )
        signature = self._loaded.signatures[name]
        specs = signature.structured_input_signature[1]
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise RequestError(f"inputs by name expected: {_listed(specs)}. Received: values without names")
            inputs = {next(iter(specs)): inputs}
        if set(inputs) != set(specs):
            raise RequestError(f"signature '{name}': inputs {_listed(specs)} expected. Received: {_listed(inputs)}")
        if not set(outputs) <= set(signature.structured_outputs):
            known = _listed(signature.structured_outputs)
            raise RequestError(f"output_filter: of {known} expected. Received: {_listed(outputs)}")
        for name, spec in specs.items():
            if spec.shape.rank and spec.shape[0] is None and (number := _rows(inputs[name])) > self.max_images:
                raise RequestError(f"{name}: at most {self.max_images} in a request expected. Received: {number}")
        tensors = {name: tensor(name, spec, inputs[name]) for name, spec in specs.items()}
        try:
            answer = {name: value.numpy() for name, value in signature(**tensors).items()}
        except tf.errors.OpError as error:
            raise RequestError(_message(error.message), _code(error.error_code)) from error
        return {name: answer[name] for name in outputs or sorted(answer)}

    def _warm_up(self, file: pathlib.Path) -> None:
        """Answers the warm-up requests, because the first request of a signature takes longer than all others."""
        from tensorflow_serving.apis import prediction_log_pb2  # loaded here only: it is an extra's

        if not file.exists():
            return
        try:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                if all(_rows(value) <= self.max_images for value in request.inputs.values()):
                    self.predict(request.model_spec.signature_name, dict(request.inputs), from_message)
        except Exception as error:  # a damaged file, or requests of another model
            raise UserError(
                f"{file}: requests that fit the model expected. Received: {plain_message(error)}"
            ) from error


class Models:
    """Models by name, for requests that name one and perhaps its version."""

    def __init__(self, models: Iterable[Model]) -> None:
        """Takes models that are loaded."""
        self.by_name = {model.name: model for model in models}

    def find(self, name: str, version: int | None = None) -> Model:
        """The model; raises RequestError, with NOT_FOUND, if it is not served, or not in this version."""
        if name not in self.by_name:
            raise RequestError(f"model: one of {_listed(self.by_name)} expected. Received: {brief(name)}", "NOT_FOUND")
        model = self.by_name[name]
        if version not in (None, model.version):
            raise RequestError(f"model '{name}': version {model.version} expected. Received: {version}", "NOT_FOUND")
        return model

    def wanted(self, model_spec: Any) -> Model:
        """The model of a request's ModelSpec; raises RequestError as `find` does."""
        if model_spec.version_label:
            raise RequestError(
                f"version_label: none is served, a version expected. Received: {model_spec.version_label}"
            )
        version = model_spec.version.value if model_spec.HasField("version") else None
        return self.find(model_spec.name, version)


def from_json(name: str, spec: Any, value: Any) -> Any:
    """A tensor of nested lists; strings are text, or bytes as {"b64": ...}.

    Raises:
        RequestError: if it does not fit `spec`.
    """
    wanted = np.dtype(spec.dtype.as_numpy_dtype)
    if spec.dtype == tf.string:
        value = _strings(name, spec, value)
    try:
        array = np.array(value, dtype=object if spec.dtype == tf.string else None)
    except (ValueError, OverflowError):
        raise _unfit(name, spec, "lists of unequal length or depth") from None
    kinds = {"u": "ui", "i": "ui", "f": "fui", "b": "b", "O": "O"}.get(wanted.kind, "")
    if array.dtype.kind not in kinds or not _fits(array.shape, spec.shape):
        kind = "text, null, objects or too large numbers" if array.dtype.kind in "OUS" else array.dtype.name
        raise _unfit(name, spec, f"{kind} of shape {array.shape}")
    if wanted.kind in "ui":
        outside = array[(array < np.iinfo(wanted).min) | (array > np.iinfo(wanted).max)]
        if outside.size:
            raise _unfit(name, spec, f"the number {outside[0]}")
    return tf.constant(array.astype(wanted))


def from_message(name: str, spec: Any, message: Any) -> Any:
    """A tensor of a TensorProto.

    Raises:
        RequestError: if it does not fit `spec`.
    """
    shape = tuple(dimension.size for dimension in message.tensor_shape.dim)
    if message.dtype != spec.dtype.as_datatype_enum or not _fits(shape, spec.shape):
        raise _unfit(name, spec, f"{_dtype_name(message.dtype)} of shape {shape}")
    if math.prod(shape) > max(_MOST_REPEATED, message.ByteSize()):
        raise _unfit(name, spec, f"shape {shape} in {message.ByteSize()} bytes")
    fields = {field.name for field, _ in message.ListFields()} - {"dtype", "tensor_shape", "version_number"}
    if math.prod(shape) and not fields:
        raise _unfit(name, spec, f"shape {shape} without values")
    try:
        return tf.constant(tf.make_ndarray(message), spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise _unfit(name, spec, f"shape {shape} with other values: {brief(str(error))}") from None


def answer_json(model: Model, request: Any) -> dict[str, Any]:
    """The answer to a REST predict's body, in rows ('instances') or columns ('inputs') as it was asked.

    Raises:
        RequestError: if it is not answered.
    """
    if not isinstance(request, dict) or len(request.keys() & {"instances", "inputs"}) != 1:
        received = _listed(request) if isinstance(request, dict) else type(request).__name__
        raise RequestError(f"body: a JSON object with 'instances' or 'inputs' expected. Received: {received}")
    signature_name = request.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise RequestError(f"signature_name: a string expected. Received: {brief(signature_name)}")
    rows = "instances" in request
    inputs = _columns(request["instances"]) if rows else request["inputs"]
    answer = {
        name: _texts(array) if array.dtype == object else array
        for name, array in model.predict(signature_name, inputs, from_json).items()
    }
    # An only output goes without its name.
    if not rows:
        return {"outputs": answer if len(answer) > 1 else next(iter(answer.values()))}
    if len(answer) == 1:
        return {"predictions": list(*answer.values())}
    return {"predictions": [dict(zip(answer, row, strict=True)) for row in zip(*answer.values(), strict=True)]}


def _columns(rows: Any) -> Any:
    """The values of each input by name, or of the only one, of a list with one item for each example."""
    if not isinstance(rows, list) or not rows:
        raise RequestError(f"instances: a list of at least one expected. Received: {brief(rows)}")
    named = [isinstance(row, dict) and not _is_base64(row) for row in rows]
    if not any(named):
        return rows
    if not all(named) or any(row.keys() != rows[0].keys() for row in rows):
        raise RequestError("instances: the same inputs by name in each expected. Received: different ones")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _rows(value: Any) -> int:
    """Entries along the first axis of an input's value, lists or a TensorProto; 0 if it has no axis."""
    if isinstance(value, list):
        return len(value)
    sizes = value.tensor_shape.dim if hasattr(value, "tensor_shape") else ()
    return sizes[0].size if sizes else 0


def _strings(name: str, spec: Any, value: Any, depth: int = 0) -> Any:
    """`value` with every string as bytes, in lists as deep as `spec` says."""
    if depth < spec.shape.rank and isinstance(value, list):
        return [_strings(name, spec, item, depth + 1) for item in value]
    if depth == spec.shape.rank and isinstance(value, str):
        return value.encode()
    if depth == spec.shape.rank and _is_base64(value):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError:
            raise _unfit(name, spec, "'b64' that is not base64") from None
    raise _unfit(name, spec, f"{brief(value)} in {depth} lists")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _texts(array: np.ndarray) -> Any:
    return np.frompyfunc(lambda text: text.decode(errors="replace"), 1, 1)(array).tolist()


def _fits(shape: Sequence[int], expected: Any) -> bool:
    """Whether a shape is one that a TensorSpec's allows."""
    if min(shape, default=0) < 0 or len(shape) != expected.rank:
        return False
    return all(want in (None, size) for size, want in zip(shape, expected, strict=True))


def _unfit(name: str, spec: Any, received: str) -> RequestError:
    sizes = ["any" if size is None else str(size) for size in spec.shape]
    if sizes[:1] == ["any"]:
        sizes[0] = "N"
    expected = f"{spec.dtype.name} of shape ({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    return RequestError(f"{name}: {expected} expected. Received: {received}")


def _dtype_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"type {number}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(brief(name) for name in sorted(names)) or "none"


def _code(number: int) -> str:
    """The gRPC status of a TensorFlow error: they have the same numbers."""
    return error_codes_pb2.Code.Name(number)


def _message(message: str) -> str:
    """Returns the message of an operation without TensorFlow's names of graph nodes."""
    message = message.partition("\n\t [[")[0].rpartition("<stack traces unavailable>\n")[2]
    message = re.sub(r"\{\{.*?\}\} ?|\[Op:\w+\].*", "", message)
    message = re.sub(r"^assertion failed: \[(.*?)\]", r"\1", message.strip(), flags=re.DOTALL)
    return " ".join(message.split())
