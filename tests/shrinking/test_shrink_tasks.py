"""`tfnas.shrink` of other tasks and models: segmentation, a regression, several labels, a transformer."""

import keras
import pytest

import tfnas

L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:Even though the .tf.config")  # of the fixture `eager`
OPTIONS = {"batch_size": 20, "candidates": 8, "device": lambda model: 1e-3 * model.count_params()}


@pytest.fixture(autouse=True)
def seeds(eager):
    keras.utils.set_random_seed(0)


def split(arrays, count):
    """Training and validation examples, each a tuple of arrays."""
    first, rest = slice(count), slice(count, None)
    return [keras.tree.map_structure(lambda x, part=part: x[part], tuple(arrays)) for part in (first, rest)]


def check(model, result, validation, share):
    """Within bounds, and measured as by Keras's `evaluate`."""
    assert tfnas.cost(result.model).parameters <= share * tfnas.cost(model).parameters
    expected = result.model.evaluate(*validation, verbose=0, return_dict=True)
    assert result.after.metrics == pytest.approx(expected, rel=1e-3)


def test_a_u_net_keeps_its_mean_iou(rng):
    images = rng.normal(size=(80, 8, 8, 1)).astype("float32")
    train, validation = split((images, (images[..., 0] > 0).astype("int32")), 60)
    image = keras.Input((8, 8, 1))
    first = L.Conv2D(6, 3, padding="same", activation="relu")(image)
    x = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D(2)(first))
    x = L.Concatenate()([first, L.UpSampling2D(2)(x)])
    x = L.Conv2D(6, 3, padding="same", activation="relu")(x)
    model = keras.Model(image, L.Conv2D(2, 1, activation="softmax")(x))
    iou = keras.metrics.MeanIoU(2, sparse_y_pred=False, name="iou")
    model.compile(keras.optimizers.Adam(0.02), loss="sparse_categorical_crossentropy", metrics=[iou])
    model.fit(*train, epochs=6, batch_size=20, verbose=0)
    result = tfnas.shrink(model, train, validation, parameters=0.4, epochs=2, **OPTIONS)
    check(model, result, validation, 0.4)
    assert result.before.metrics["iou"] == pytest.approx(model.evaluate(*validation, verbose=0)[1], rel=1e-4)
    assert result.after.metrics["iou"] > 0.6  # of labels by chance: a third
    assert result.way == "refitted"  # so the weights were found to be trained


def test_a_regression_with_two_named_inputs_and_weights(rng):
    inputs = {"a": rng.normal(size=(100, 4)).astype("float32"), "b": rng.normal(size=(100, 3)).astype("float32")}
    targets = inputs["a"][:, :1] * 2 + inputs["b"][:, :1] + 5
    train, validation = split((inputs, targets, rng.uniform(0.5, 1.5, 100).astype("float32")), 70)
    given = {name: keras.Input((x.shape[1],), name=name) for name, x in inputs.items()}
    x = L.Concatenate()([L.Dense(16, activation="relu")(given["a"]), L.Dense(16, activation="relu")(given["b"])])
    model = keras.Model(given, L.Dense(1)(L.Dense(16, activation="relu")(x)))
    result = tfnas.shrink(model, train, validation, parameters=0.5, epochs=1, trained=False, **OPTIONS)
    assert tfnas.cost(result.model).parameters <= 0.5 * tfnas.cost(model).parameters
    x, y, weights = validation
    loss, mae = result.model.evaluate(x, y, sample_weight=weights, verbose=0)
    assert result.after.metrics == pytest.approx({"loss": loss, "mae": mae}, rel=1e-3)


def test_several_labels_at_once_without_training(rng):
    features = rng.normal(size=(200, 6)).astype("float32")
    train, validation = split((features, (features[:, :3] > 0).astype("float32")), 120)
    feature = keras.Input((6,))
    model = keras.Model(feature, L.Dense(3, activation="sigmoid")(L.Dense(24, activation="relu")(feature)))
    model.compile(keras.optimizers.Adam(0.03), loss="binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    model.fit(*train, epochs=10, batch_size=20, verbose=0)
    result = tfnas.shrink(model, train, validation, parameters=0.5, epochs=0, **OPTIONS)
    check(model, result, validation, 0.5)
    assert not result.history and result.after.metrics["auc"] > 0.8


def test_a_transformer_whose_model_is_subclassed(rng):
    images = rng.normal(size=(80, 4, 4, 1)).astype("float32")
    train, validation = split((images, (images.mean((1, 2, 3)) > 0).astype("int32")), 60)

    class ViT(keras.Model):
        def __init__(self):
            super().__init__()
            self.patches, self.flat = L.Conv2D(8, 2, 2), L.Reshape((4, 8))
            self.norms = [L.LayerNormalization() for _ in range(3)]
            self.attention = L.MultiHeadAttention(4, 2)
            self.hidden, self.back, self.head = L.Dense(16, activation="gelu"), L.Dense(8), L.Dense(2)

        def call(self, images):
            x = self.flat(self.patches(images))
            y = self.norms[0](x)
            x = x + self.attention(y, y)
            x = x + self.back(self.hidden(self.norms[1](x)))
            return self.head(keras.ops.mean(self.norms[2](x), axis=1))

    model = ViT()
    result = tfnas.shrink(model, train, validation, parameters=0.6, epochs=1, trained=False, **OPTIONS)
    check(model, result, validation, 0.6)
    heads = next(layer for layer in result.model.layers if isinstance(layer, L.MultiHeadAttention)).num_heads
    assert 1 <= heads <= 4
