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
# A model of `keras.applications` becomes one of 60 % of its size, with images that lie in one folder a class. Run it as
# it is (`.venv/bin/python examples/shrink_mobilenet.py`), or open it as a notebook.
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

TRAINING_EPOCHS = 10
EPOCHS = 12  # of search and retraining
NUM_IMAGES = 1000  # as many as yours are
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
# Where a download is possible, take `weights="imagenet"`, `alpha=1.0` and `SIZE = 224`; where none is, `weights=` also
# takes the path of a file that you have brought there.

# %%
keras.utils.set_random_seed(0)
body = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
inputs = keras.Input((SIZE, SIZE, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)  # what MobileNetV2 expects of pixels
model = keras.Model(inputs, keras.layers.Dense(num_classes)(body(x)), name="mobilenet")

# %% [markdown]
# First the model is trained for these classes, as you would without `tfnas`. If it is not, `shrink` starts with some
# epochs for all channels, and needs more of them.

# %%
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, metrics=["accuracy"])
model.fit(train, epochs=TRAINING_EPOCHS, shuffle=False, verbose=2)

# %% [markdown]
# The call takes the loss, the metrics and the optimizer that the model is compiled with. With `workdir=` it can be
# interrupted: run it again, and it resumes. Several sizes at once are `multiply_adds=(0.4, 0.6, 0.8)`.

# %%
result = tfnas.shrink(model, train, validation, parameters=0.6, multiply_adds=0.6, epochs=EPOCHS)

# %%
result

# %% [markdown]
# What its size is worth in time depends on the machine. The page shows what is left of every layer, and the course of
# the training.

# %%
result.report("mobilenet.html")
result.model.export("small_mobilenet")  # a SavedModel; it needs TensorFlow only
small = result.model
accuracy = result.after.metrics["accuracy"]
print(f"{model.count_params():,} parameters -> {small.count_params():,}, validation accuracy {accuracy:.1%}")
