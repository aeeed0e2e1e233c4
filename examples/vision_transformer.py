# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A smaller vision transformer
#
# A transformer cuts an image into patches and lets them attend to each other. It becomes one of 40 % of its parameters
# and multiply-adds: with fewer heads, narrower dense layers between, and a narrower stream of patches if the bounds
# need it. Run this as it is (`.venv/bin/python examples/vision_transformer.py`), or open it as a notebook; it takes a
# few minutes on two cores. Where yours goes is said at each place.

# %%
import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import tfnas

TRAINING_EPOCHS = 30
EPOCHS = 10  # of search and retraining
NUM_IMAGES = 1797  # all of them
BLOCKS = 2
PATCH = 2  # pixels in height and width; 16 for photographs of 224 x 224

# %% [markdown]
# Your images and labels go here: float32 of the shape (images, height, width, channels), and the number of the class.

# %%
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images, labels = images[:NUM_IMAGES].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[:NUM_IMAGES]

# %% [markdown]
# 60 % train the networks, 20 % choose among the smaller ones, and 20 % are for the end.

# %%
parts = np.split(rng.permutation(NUM_IMAGES), [int(0.6 * NUM_IMAGES), int(0.8 * NUM_IMAGES)])
train, validation, test = ((images[part], labels[part]) for part in parts)

# %% [markdown]
# Your network goes here: four heads of 8 channels, on a stream of 32. It has no embedding of positions, which such
# small images do without, since the last layer reads all patches in their order.

# %%
image = keras.Input(images.shape[1:])
x = layers.Conv2D(32, PATCH, PATCH)(image)
x = layers.Reshape((-1, 32))(x)
for _ in range(BLOCKS):
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
    y = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(32)(y)])
x = layers.Flatten()(layers.LayerNormalization()(x))
model = keras.Model(image, layers.Dense(10)(x), name="vision_transformer")

# %% [markdown]
# It is trained as you would without `tfnas`.

# %%
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
model.fit(*train, epochs=TRAINING_EPOCHS, batch_size=50, verbose=2)

# %% [markdown]
# The call takes the loss, the metrics and the optimizer that the model is compiled with. `distill=0.5` would let the
# smaller network learn from the outputs of this one too.

# %%
result = tfnas.shrink(
    model, train, validation, parameters=0.4, multiply_adds=0.4, epochs=EPOCHS, test=test, trained=True
)

# %%
result

# %% [markdown]
# If it loses more than you can spare, ask for less: `parameters=(0.4, 0.6, 0.8)` gives three networks from one search.

# %%
result.model.save("small_vision_transformer.keras")
before, after = result.before, result.after
print(f"{before.parameters:,} parameters -> {after.parameters:,}, ", end="")
print(f"accuracy on the test images {before.test['accuracy']:.1%} -> {after.test['accuracy']:.1%}")
