# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A smaller network for a table
#
# Dense layers predict a number from the columns of a table: from ten figures of a patient, how far diabetes has come a
# year later. They become 40 % of their size. Run this as it is (`.venv/bin/python examples/regression.py`), or open it
# as a notebook; it takes a minute on two cores. Where yours goes is said at each place.

# %%
import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_diabetes

import tfnas

TRAINING_EPOCHS = 30
EPOCHS = 10  # of search and retraining

# %% [markdown]
# Your table goes here: float32 of the shape (rows, columns), and targets of (rows, 1), or of more columns if the
# network predicts several numbers. Both are scaled to a mean of 0 and a variance of 1, without which such networks
# train badly. An error of 1 is then a standard deviation of the targets.

# %%
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
table, targets = load_diabetes(return_X_y=True)
table, targets = (((x - x.mean(0)) / x.std(0)).astype("float32") for x in (table, targets[:, None]))

# %% [markdown]
# 60 % train the networks, 20 % choose among the smaller ones, and 20 % are for the end. If your rows belong together,
# such as several of one patient, keep those in one part.

# %%
parts = np.split(rng.permutation(len(table)), [int(0.6 * len(table)), int(0.8 * len(table))])
train, validation, test = ((table[part], targets[part]) for part in parts)

# %% [markdown]
# Your network goes here.

# %%
row = keras.Input((table.shape[1],))
x = layers.Dense(64, activation="relu")(row)
x = layers.Dense(64, activation="relu")(x)
model = keras.Model(row, layers.Dense(targets.shape[1])(x), name="regression")

# %% [markdown]
# It is trained as you would without `tfnas`, with any loss.

# %%
model.compile(keras.optimizers.Adam(0.001), "mse", metrics=["mae"])
model.fit(*train, epochs=TRAINING_EPOCHS, batch_size=50, verbose=2)

# %% [markdown]
# The call takes the loss, the metrics and the optimizer that the model is compiled with. All columns are read by the
# smaller network too, and all targets predicted: only what lies between becomes narrower.

# %%
result = tfnas.shrink(
    model, train, validation, parameters=0.4, multiply_adds=0.4, epochs=EPOCHS, test=test, trained=True
)

# %%
result

# %% [markdown]
# With so few rows, networks soon know them by heart. Where training after the cut raises the validation loss, `shrink`
# keeps the network as it was cut.

# %%
print("trained after the cut" if result.retrained else "as it was cut")

# %% [markdown]
# The smaller network is a plain Keras model.

# %%
result.model.save("small_regression.keras")
before, after = result.before, result.after
print(f"{before.parameters:,} parameters -> {after.parameters:,}, ", end="")
print(f"mean absolute error of the test rows {before.test['mae']:.3f} -> {after.test['mae']:.3f}")
