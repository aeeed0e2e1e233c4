# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A smaller MobileNetV2 for your own folder of images
#
# A model of `keras.applications` is searched for one of 60 % of its parameters, on images that lie in one folder a
# class. Run it as it is (`.venv/bin/python examples/shrink_mobilenet.py`), or open it as a notebook.
#
# So that it runs without a download, and in minutes without a GPU, the images here are scikit-learn's digits, written
# to a folder first, and the model is a narrow one without pretrained weights. It shows the way, not the accuracy that
# can be had. Where yours go is said at each place.

# %%
import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import tfnas

WARMUP_EPOCHS = 10
EPOCHS = 25  # of the search: some hundred steps, or the gates cannot get to the size asked for
RETRAIN_EPOCHS = 5
NUM_IMAGES = 1000  # as many as yours are
CANDIDATES = 50
SIZE = 32  # the smallest that MobileNetV2 takes; 224 for pretrained weights

# %% [markdown]
# Your folder goes here: `DIR/CLASS/*.png` or `.jpg`. This makes one.

# %%
folder = pathlib.Path(tempfile.mkdtemp()) / "digits"
digits = load_digits()
for i, (image, label) in enumerate(zip(digits.images[:NUM_IMAGES], digits.target, strict=False)):
    (folder / str(label)).mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(np.round(image * 255 / 16)[..., None], 3, axis=-1)
    keras.utils.save_img(folder / str(label) / f"{i:04d}.png", pixels, scale=False)

# %% [markdown]
# Keras reads it. Training and validation images are disjoint parts of one fixed order; keep a third part for the end,
# if you want to say how good the result is.

# %%
train, validation = keras.utils.image_dataset_from_directory(
    folder, validation_split=0.25, subset="both", seed=0, image_size=(SIZE, SIZE), batch_size=50, verbose=False
)
num_classes = len(train.class_names)

# %% [markdown]
# Where a download is possible, take `weights="imagenet"`, `alpha=1.0` and `SIZE = 224`: `gate` keeps the weights that
# it is given, and needs no epochs without gates before it. Where none is, `weights=` also takes the path of a file that
# you have brought there. The head must give logits.

# %%
keras.utils.set_random_seed(0)
body = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
inputs = keras.Input((SIZE, SIZE, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)  # what MobileNetV2 expects of pixels
model = keras.Model(inputs, keras.layers.Dense(num_classes)(body(x)))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# %% [markdown]
# Without pretrained weights: first some epochs without gates, so that the gates judge channels that have learned
# something.

# %%
model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, metrics=["accuracy"])
model.fit(train, epochs=WARMUP_EPOCHS, shuffle=False, verbose=2)

# %%
steps = EPOCHS * len(train)
supernet = tfnas.gate(model, parameters=0.6, multiply_adds=0.6, steps=steps, num_examples=10 * NUM_IMAGES)
supernet.compile(keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-3), loss=loss, metrics=["accuracy"])
supernet.fit(train, epochs=EPOCHS, shuffle=False, verbose=2)

# %%
posterior = supernet.posterior()
posterior

# %%
statistics = tfnas.Recalibration(supernet, next(iter(train))[0])
ranking = tfnas.rank(supernet, posterior.sample(CANDIDATES, seed=0), validation, recalibration=statistics)
ranking

# %% [markdown]
# The winner is cut out: a plain `keras.Model`, physically smaller. What its size is worth in time depends on the
# machine (docs/your_model.md); `tfnas.compare_latency` measures it. It can be trained further like any Keras model.

# %%
statistics.apply(ranking.best)
small = tfnas.subnet(supernet, ranking.best)
small.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss=loss, metrics=["accuracy"])
small.fit(train, epochs=RETRAIN_EPOCHS, shuffle=False, verbose=2)

# %%
for name, network in (("full, before the search", model), ("small", small)):
    _, accuracy = network.evaluate(validation, verbose=0)
    print(f"{name}: {network.count_params():,} parameters, validation accuracy {accuracy:.1%}")
small.export("runs/small_mobilenet")  # a SavedModel; it needs TensorFlow only
