# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A smaller network for several labels
#
# A convolutional network answers several questions about one image, each with yes or no: here whether a digit is even,
# whether it is at least five, and whether it has a closed loop. It becomes one of 40 % of its size. Run this as it is
# (`.venv/bin/python examples/several_labels.py`), or open it as a notebook; it takes a few minutes on two cores. Where
# yours goes is said at each place.

# %%
import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import tfnas

TRAINING_EPOCHS = 30
EPOCHS = 10  # of search and retraining
NUM_IMAGES = 1797  # all of them
WIDTHS = (16, 32)  # of the convolutions before and after pooling

# %% [markdown]
# Your images and labels go here: float32 of the shape (images, height, width, channels), and float32 of (images,
# labels), 1 where a label holds and 0 where it does not. Any number of them may hold at once.

# %%
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
images, digits = load_digits(return_X_y=True)
images, digits = images[:NUM_IMAGES].reshape(-1, 8, 8, 1).astype("float32") / 16, digits[:NUM_IMAGES]
labels = np.stack([digits % 2 == 0, digits >= 5, np.isin(digits, (0, 6, 8, 9))], axis=1).astype("float32")

# %% [markdown]
# 60 % train the networks, 20 % choose among the smaller ones, and 20 % are for the end.

# %%
parts = np.split(rng.permutation(NUM_IMAGES), [int(0.6 * NUM_IMAGES), int(0.8 * NUM_IMAGES)])
train, validation, test = ((images[part], labels[part]) for part in parts)

# %% [markdown]
# Your network goes here. It ends with a sigmoid for each label, where one label of many would have a softmax over all.


# %%
def convolved(x, width):
    """Two convolutions."""
    for _ in range(2):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


image = keras.Input(images.shape[1:])
x = layers.MaxPooling2D()(convolved(image, WIDTHS[0]))
x = layers.GlobalAveragePooling2D()(convolved(x, WIDTHS[1]))
model = keras.Model(image, layers.Dense(labels.shape[1], activation="sigmoid")(x), name="several_labels")

# %% [markdown]
# It is trained as you would without `tfnas`. The AUC, averaged over the labels, is the probability that an image for
# which a label holds gets a higher value than one for which it does not. It needs no threshold.

# %%
auc = keras.metrics.AUC(name="auc", multi_label=True)
model.compile(keras.optimizers.Adam(0.002), "binary_crossentropy", metrics=[auc])
model.fit(*train, epochs=TRAINING_EPOCHS, batch_size=50, verbose=2)

# %% [markdown]
# The call takes the loss, the metrics and the optimizer that the model is compiled with.

# %%
result = tfnas.shrink(
    model, train, validation, parameters=0.4, multiply_adds=0.4, epochs=EPOCHS, test=test, trained=True
)

# %%
result

# %% [markdown]
# An average may hide a label that got lost. The share of correct answers to each of them, of the validation images,
# before and after, with a threshold of 0.5:

# %%
for network in (model, result.model):
    correct = (network.predict(validation[0], verbose=0) > 0.5) == validation[1]
    print(dict(zip(("even", "at least five", "with a loop"), correct.mean(0).round(3).tolist(), strict=True)))

# %%
result.model.save("small_several_labels.keras")
before, after = result.before, result.after
print(f"{before.parameters:,} parameters -> {after.parameters:,}, ", end="")
print(f"AUC of the test images {before.test['auc']:.3f} -> {after.test['auc']:.3f}")
