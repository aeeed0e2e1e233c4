# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Digits in five minutes
#
# A network that is too big for scikit-learn's 8 x 8 digits is searched for one of a quarter of its parameters. Run it
# as it is (`.venv/bin/python examples/digits_in_five_minutes.py`), or open it as a notebook: in Jupyter with jupytext,
# or in an editor that knows percent cells.

# %%
import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import tfnas

EPOCHS = 30  # of the search; the bounds are due after 70 % of them
RETRAIN_EPOCHS = 20
CANDIDATES = 500

# %% [markdown]
# Three sets that share no image: one to train, one to rank the candidates, one for the end. The order is that of the
# writers, so the test images are in other hands than those of training, and harder than a random part would be.

# %%
digits = load_digits()
images, labels = digits.images[..., None].astype("float32") / 16, digits.target
train, validation, test = ((images[a:b], labels[a:b]) for a, b in ((0, 1000), (1000, 1400), (1400, 1797)))
keras.utils.set_random_seed(0)

# %% [markdown]
# The big model is an ordinary Keras model. `gate` makes a copy with the same weights and a gate for every unit of
# channels that can only exist or vanish together.

# %%
big = tfnas.supernets.multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))
steps = EPOCHS * 1000 // 50
supernet = tfnas.gate(big, parameters=0.25, multiply_adds=0.35, steps=steps, num_examples=10_000)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rate = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=steps + RETRAIN_EPOCHS * 1000 // 50)
optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3)
supernet.compile(optimizer, loss=loss, metrics=["accuracy"])
supernet.fit(*train, batch_size=50, epochs=EPOCHS, verbose=2)

# %% [markdown]
# What was learned of the gates is a distribution over architectures. In a notebook it is drawn, a bar for each group
# of units.

# %%
posterior = supernet.posterior()
posterior

# %% [markdown]
# Candidates of it race on the validation images: the most probable network within the bounds, and samples that obey
# them too. Each gets batch-normalization statistics of its own, from 250 training images, because those of the
# search are of relaxed, random gates.

# %%
held_out = tf.data.Dataset.from_tensor_slices(validation).batch(200)
statistics = tfnas.Recalibration(supernet, train[0][:250])
candidates = posterior.sample(CANDIDATES, seed=0)
ranking = tfnas.rank(supernet, candidates, held_out, recalibration=statistics)
ranking

# %%
ranking.best

# %% [markdown]
# The winner is cut out: a plain `keras.Model`, physically smaller. It continues training at the learning rate at which
# the search stopped.

# %%
statistics.apply(ranking.best)
small = tfnas.subnet(supernet, ranking.best)
rest = keras.optimizers.schedules.CosineDecay(float(rate(steps)), decay_steps=RETRAIN_EPOCHS * 1000 // 50)
small.compile(keras.optimizers.SGD(rest, momentum=0.9, nesterov=True), loss=loss, metrics=["accuracy"])
small.fit(*train, batch_size=50, epochs=RETRAIN_EPOCHS, verbose=2)

# %%
_, accuracy = small.evaluate(*test, verbose=0)
print(f"{big.count_params():,} parameters -> {small.count_params():,}, test accuracy {accuracy:.1%}")
small.export("runs/small_digits")  # a SavedModel; it needs TensorFlow only
