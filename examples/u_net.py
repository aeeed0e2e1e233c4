# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A smaller U-Net that marks shapes
#
# A U-Net says of each pixel what it belongs to: background, a disc or a square. It becomes one of 40 % of its
# parameters and multiply-adds. Run this as it is (`.venv/bin/python examples/u_net.py`), or open it as a notebook; it
# takes a few minutes on two cores. Where yours goes is said at each place.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

import tfnas

TRAINING_EPOCHS = 30
EPOCHS = 10  # of search and retraining
WIDTHS = (8, 16, 32)  # of each level's convolutions; real U-Nets begin with 32 or 64
NUM_IMAGES = 500

# %% [markdown]
# Your images and masks go here: float32 of the shape (images, height, width, channels), and int32 of (images, height,
# width), where each number is a class. These are drawn: a disc and a square of any size, in noise as strong as half of
# their brightness.

# %%
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
rows, columns = np.mgrid[:32, :32]
masks = np.zeros((NUM_IMAGES, 32, 32), "int32")
for mask in masks:
    for kind in (1, 2):
        y, x, size = rng.uniform(5, 27), rng.uniform(5, 27), rng.uniform(3, 7)
        far = np.hypot(rows - y, columns - x) if kind == 1 else np.maximum(abs(rows - y), abs(columns - x))
        mask[far < size] = kind
noise = rng.normal(scale=0.5, size=(*masks.shape, 1))
images = ((masks > 0)[..., None] + noise).astype("float32")

# %% [markdown]
# 60 % train the networks, 20 % choose among the smaller ones, and 20 % are for the end.

# %%
parts = np.split(rng.permutation(NUM_IMAGES), [int(0.6 * NUM_IMAGES), int(0.8 * NUM_IMAGES)])
train, validation, test = ((images[part], masks[part]) for part in parts)

# %% [markdown]
# Your network goes here. Each level of the way up reads the one below and, past it, the level of the way down: their
# channels are counted and cut together, without anything that you have to declare.


# %%
def convolved(x, width):
    """Two convolutions."""
    for _ in range(2):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


x = image = keras.Input((32, 32, 1))
levels = []
for width in WIDTHS[:-1]:
    levels.append(convolved(x, width))
    x = layers.MaxPooling2D()(levels[-1])
x = convolved(x, WIDTHS[-1])
for level in reversed(levels):
    x = convolved(layers.Concatenate()([level, layers.UpSampling2D()(x)]), level.shape[-1])
model = keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x), name="u_net")

# %% [markdown]
# It is trained as you would without `tfnas`. Few pixels are not background, so the share of correct ones says little;
# the mean IoU (overlap by union, averaged over the classes) counts each class alike.

# %%
iou = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="mean_iou")
model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=[iou])
model.fit(*train, epochs=TRAINING_EPOCHS, batch_size=50, verbose=2)

# %% [markdown]
# The call takes the loss, the metrics and the optimizer that the model is compiled with. The test images are read once,
# at the very end, by the networks before and after.

# %%
result = tfnas.shrink(
    model, train, validation, parameters=0.4, multiply_adds=0.4, epochs=EPOCHS, test=test, trained=True
)

# %%
result

# %% [markdown]
# Three validation images: what the network is shown, what is there, and what the networks before and after see.

# %%
small = result.model
shown, wanted = (array[:3] for array in validation)
found = [network.predict(shown, verbose=0).argmax(-1) for network in (model, small)]
titles = ("image", "mask", f"{result.before.parameters:,} parameters", f"{result.after.parameters:,} parameters")
figure, axes = plt.subplots(3, 4, figsize=(9, 7), layout="constrained")
for row, pictures in zip(axes, zip(shown, wanted, *found, strict=True), strict=True):
    row[0].imshow(pictures[0], cmap="gray")
    for place, picture in zip(row[1:], pictures[1:], strict=True):
        place.imshow(picture, vmin=0, vmax=2, interpolation="nearest")
for place, title in zip(axes[0], titles, strict=True):
    place.set_title(title)
for place in axes.flat:
    place.set_axis_off()
figure.savefig("masks.png")

# %% [markdown]
# The smaller network is a plain Keras model.

# %%
small.save("small_u_net.keras")
before, after = result.before, result.after
print(f"{before.parameters:,} parameters -> {after.parameters:,}, ", end="")
print(f"mean IoU of the test images {before.test['mean_iou']:.3f} -> {after.test['mean_iou']:.3f}")
