"""A program that shrinks a trained network, for `kills`.

    .venv/bin/python -m benchmarks.faults.shrink_digits FOLDER

FOLDER/model.keras is trained on the bundled digits if it is not there yet. The program shrinks it with the working
directory FOLDER/run: units are dropped in steps, and the network found learns from the given one too. At its end it
writes FOLDER/found.json with all that a second call must repeat: digests of the architecture and the weights, metrics
and losses.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
from sklearn.datasets import load_digits

from tfnas.common import terminal

tf = terminal.load_tensorflow()
import keras  # noqa: E402  after TensorFlow, whose greeting is held back

import tfnas  # noqa: E402

_LOGGED = ("phase", "epoch", "loss", "accuracy", "val_loss", "val_accuracy")


def _network():
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(image)))
    for width in 24, 24:
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(y))
    model = keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, metrics=["accuracy"])
    return model


def main(folder):
    """Trains the model, or reads it, and shrinks it."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    train, validation = (images[:1000], labels[:1000]), (images[1000:], labels[1000:])
    file = folder / "model.keras"
    if not file.exists():
        keras.utils.set_random_seed(0)
        model = _network()
        model.fit(*train, batch_size=50, epochs=2, verbose=0)
        model.save(file)
    result = tfnas.shrink(
        keras.models.load_model(file),
        train,
        validation,
        parameters=0.4,
        epochs=12,
        distill=0.5,
        batch_size=50,
        candidates=20,
        trained=True,
        workdir=folder / "run",
    )
    weights = b"".join(np.ascontiguousarray(weight).tobytes() for weight in result.model.get_weights())
    found = {
        "architecture": result.architecture.digest(),
        "way": [result.way, result.retrained],
        "weights": hashlib.sha256(weights).hexdigest(),
        "history": [{name: record[name] for name in _LOGGED if name in record} for record in result.history],
        "before": result.before.metrics,
        "after": result.after.metrics,
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
