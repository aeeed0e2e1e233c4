"""Export: a SavedModel that takes raw pixels and answers with labels, checked where only TensorFlow is."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tfnas import blessing, conversion, data, saving, terminal, workdir
from tfnas.architecture import Architecture
from tfnas.config import Config
from tfnas.errors import UserError

_TOLERANCE = 1e-5  # of probabilities, between the exported and the reloaded model

# Neither keras nor tfnas can be imported by the process that reloads: a SavedModel must stand alone.
_RELOAD = """
import io
import sys
sys.modules["keras"] = sys.modules["tfnas"] = sys.modules["tensorflow_probability"] = None
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = serve(image=tf.constant(np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)))
found = io.BytesIO()
np.savez(found, probabilities=answer["probabilities"].numpy(), label=answer["label"].numpy().astype("S"))
sys.stdout.buffer.write(found.getvalue())
"""


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Exports the network that retrain left in `path` to `export/NAME/VERSION` and reloads it in a fresh process.

    Raises:
        UserError: for bad settings or files, or if retrain has not run.
    """
    work = workdir.Workdir(path)
    work.run_stage("export", config, lambda: _export(config, work))


def _export(config: Config, work: workdir.Workdir) -> list[str]:
    conversion.require(config.export.formats)
    verdict = work.read_json(workdir.EVALUATION, "export", blessing.VERDICT)
    if not verdict["blessed"]:
        raise UserError(f"export: the network is not what was asked for ({blessing.reasons(verdict)}), so it stays")
    splits = data.load(config.data, work.path / "tensorflow_datasets")
    model = saving.load(work.path / workdir.SUBNET, keras.Model)
    _check_fits(model, splits, work.path / workdir.SUBNET)
    text = (work.path / workdir.CUT_ARCHITECTURE).read_text()
    Architecture.from_json(text)  # refuses one that was altered
    base = f"export/{config.export.name or config.data.short_name}"
    target = work.file(f"{base}/{config.export.version}")

    # Built aside and moved in whole: a server that watches the folder never sees half a model.
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f"{workdir.TEMPORARY}export-", dir=target.parent))
    try:
        _write_saved_model(model, splits, config, aside / "model")
        largest = _check_reloaded(model, splits, config, aside / "model")
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside / "model", target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    terminal.console.print(f"export    reloaded without tfnas or keras: probabilities equal to {largest:.0e}")
    formats = conversion.convert(model, splits, config, config.export.formats, target.parent)

    beside = [f"{base}/model.keras", f"{base}/architecture.json", f"{base}/labels.txt"]
    work.write(beside[0], model.save)
    work.write(beside[1], lambda file: file.write_text(text))
    work.write(beside[2], lambda file: file.write_text("".join(f"{name}\n" for name in splits.label_names)))
    work.write_json(
        workdir.EXPORT_RESULTS,
        {
            "saved_model": str(target.relative_to(work.path)),
            "largest_difference": largest,
            "files": beside,
            "formats": [{**record, "file": f"{base}/{record['file']}"} for record in formats],
        },
    )
    return [str(target.relative_to(work.path)), *beside, *(f"{base}/{name}" for name in config.export.formats)]


def _check_fits(model: keras.Model, splits: data.Splits, path: pathlib.Path) -> None:
    shapes = [tuple(tensor.shape) for tensor in (*(model.inputs or ()), *(model.outputs or ()))]
    expected = [(None, *splits.image_shape), (None, splits.num_classes)]
    if shapes != expected:
        raise UserError(f"{path}: input and output of shapes {expected} expected, as the data has. Received: {shapes}")


def _write_saved_model(model: keras.Model, splits: data.Splits, config: Config, path: pathlib.Path) -> None:
    labels = tf.constant(splits.label_names)
    # Images of any size are accepted where the data was resized for training, and resized alike.
    size = (None, None) if config.data.image_size else splits.image_shape[:2]

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = data.standardise(data.prepare(image, config.data), config.data)
        probabilities = tf.nn.softmax(model(pixels, training=False))
        return {"probabilities": probabilities, "label": tf.gather(labels, tf.argmax(probabilities, -1))}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        serve,
        input_signature=[tf.TensorSpec((None, *size, splits.image_shape[-1]), tf.uint8, name="image")],
    )
    archive.write_out(str(path), verbose=False)


def _check_reloaded(model: keras.Model, splits: data.Splits, config: Config, path: pathlib.Path) -> float:
    """Largest difference of a probability between `model` here and the SavedModel at `path` in a fresh process."""
    images, _ = next(iter(splits.validation.batch(64)))
    # Of one size already, and so batched; they are sent as raw images all the same, and prepared once more.
    pixels = data.standardise(data.prepare(images, config.data), config.data)
    expected = tf.nn.softmax(model(pixels, training=False)).numpy()
    # Through pipes: a disk that is full is none of this check's business.
    sent = io.BytesIO()
    np.save(sent, images.numpy())
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _RELOAD, str(path)]
    done = subprocess.run(command, env=environment, input=sent.getvalue(), capture_output=True)
    if done.returncode:
        message = done.stderr[-2000:].decode(errors="replace")
        raise RuntimeError(f"export: the SavedModel could not be reloaded in a fresh process:\n{message}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as answer:
        got, labels = answer["probabilities"], answer["label"]
    largest = float(np.abs(got - expected).max())
    names = np.array(splits.label_names)[expected.argmax(-1)]
    if not largest <= _TOLERANCE or [label.decode() for label in labels] != names.tolist():
        raise RuntimeError(f"export: the reloaded SavedModel differs by {largest:.1e}, at most {_TOLERANCE} expected")
    return largest
