"""Warm-up requests that TensorFlow Serving runs before it accepts clients, because first requests are slow.

The file `assets.extra/tf_serving_warmup_requests` is a TFRecord of `PredictionLog` messages. It is written here in the
wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding), as four nested messages with a few
fields, because their Python classes are only in tensorflow-serving-api, which other ways to serve do not need.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas.common.errors import add_filename
from tfnas.data import pipeline
from tfnas.exporting import savedmodel

FILE = "assets.extra/tf_serving_warmup_requests"
_BATCHES = (1, 8)  # examples per request: both are compiled and allocated separately
# Field numbers of PredictionLog, PredictLog, PredictRequest, ModelSpec and map entries.
_PREDICT_LOG, _REQUEST, _MODEL_SPEC, _INPUTS, _NAME, _SIGNATURE, _KEY, _VALUE = 6, 1, 1, 2, 1, 3, 1, 2


def write(
    examples: Any, splits: pipeline.Splits, name: str, saved_model: str | os.PathLike[str], uncertainty: bool
) -> None:
    """Adds warm-up requests to a SavedModel that `savedmodel.write` wrote, one per batch size and signature.

    Args:
        examples: inputs of the validation split, arrays (N, ...) in the structure of `splits.inputs`; the first 8 are
            used.
        splits: the splits, whose examples are not read.
        name: name of the served model.
        saved_model: folder of the SavedModel.
        uncertainty: whether there is the signature `serve_uncertainty`.
    """
    arrays = {name: np.asarray(x)[: _BATCHES[-1]] for name, x in splits.inputs.unpacked(examples).items()}
    inputs = {savedmodel.DEFAULT: arrays}
    if savedmodel.formats(splits.inputs):
        files = [tf.io.encode_png(image).numpy() for image in arrays["image"]]
        inputs[savedmodel.BYTES] = {"image_bytes": np.array(files, object)}
    if uncertainty:
        inputs[savedmodel.UNCERTAINTY] = inputs[savedmodel.DEFAULT]
    number = len(next(iter(arrays.values())))
    path = pathlib.Path(saved_model) / FILE
    path.parent.mkdir(exist_ok=True)
    logs = [
        _prediction_log(name, signature, {key: values[:size] for key, values in given.items()})
        for signature, given in inputs.items()
        for size in sorted({min(size, number) for size in _BATCHES})
    ]
    with add_filename(path), tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for log in logs:
            writer.write(log)


def _prediction_log(name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    spec = _field(_NAME, name.encode()) + _field(_SIGNATURE, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for key, values in inputs.items():
        tensor = tf.make_tensor_proto(values).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, key.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field: text, bytes, or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
