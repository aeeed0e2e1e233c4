import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.data.inputs import BATCH_SIZE, one_batch, read

COUNT = BATCH_SIZE + 7  # the last of the batches that are cut from arrays is partial


def one_input(shape=(4, 4, 1)):
    image = keras.Input(shape, name="image")
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalMaxPooling2D()(image)))


def two_inputs(structure):
    a, b = keras.Input((4, 4, 1), name="a"), keras.Input((3,), name="b", dtype="int32")
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(a), keras.layers.Rescaling(1.0)(b)])
    return keras.Model({"dict": {"b": b, "a": a}, "list": [a, b], "tuple": (b, a)}[structure], joined)


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(COUNT, 4, 4, 1)).astype("float32"), rng.integers(0, 2, COUNT), rng.uniform(size=COUNT)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-COUNT // 100)

    def __getitem__(self, i):
        return tuple(a[100 * i : 100 * i + 100] for a in self.arrays)


def generator(*arrays):
    for i in range(0, COUNT, 100):
        yield tuple(a[i : i + 100] for a in arrays)


KINDS = {
    "arrays": lambda *a: a,
    "tensors": lambda *a: tuple(map(tf.constant, a)),
    "batched tf.data": lambda *a: tf.data.Dataset.from_tensor_slices(a).batch(64),
    "unbatched tf.data": lambda *a: tf.data.Dataset.from_tensor_slices(a),
    "one batch": lambda *a: tf.data.Dataset.from_tensors(a),
    "PyDataset": Batches,
    "generator": generator,
    "list of batches": lambda *a: list(generator(*a)),
    "generator of single examples": lambda *a: zip(*a, strict=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(kind, arrays):
    for parts in (arrays[:2], arrays):
        found = read(KINDS[kind](*parts), one_input(), "rank")
        assert len(found) == COUNT
        np.testing.assert_array_equal(found.inputs[0], arrays[0])
        np.testing.assert_array_equal(found.labels, arrays[1])
        assert (found.weights is None) == (len(parts) == 2)
        if len(parts) == 3:
            np.testing.assert_array_equal(found.weights, arrays[2])
            np.testing.assert_array_equal(found.take([3, 1]).weights, arrays[2][[3, 1]])


@pytest.mark.parametrize("structure", ["dict", "list", "tuple"])
def test_several_inputs_arrive_in_the_models_order(structure, rng):
    a, b = rng.normal(size=(20, 4, 4, 1)), rng.integers(0, 9, (20, 3))
    model = two_inputs(structure)
    expected = {"a": a.astype("float32"), "b": b.astype("int32")}
    given = {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (b, a)}[structure]
    ways = [given, {"a": a, "b": b}]  # by name, whatever the model has
    for way in ways:
        labels = {"kind": a[:, 0, 0], "size": [b, b]}
        if not isinstance(way, list):  # of which tf.data makes one tensor
            unbatched = tf.data.Dataset.from_tensor_slices((way, {**labels, "size": (b, b)}))
            assert read(unbatched, model, "rank").labels["size"][1].shape == (20, 3)
        found = read((way, labels), model, "rank")
        for tensor, array in zip(model.inputs, found.inputs, strict=True):
            np.testing.assert_array_equal(array, expected[tensor.name])
            assert array.dtype == expected[tensor.name].dtype
        np.testing.assert_array_equal(found.labels["size"][1], b)
        for tensor, array in zip(model.inputs, one_batch(way, model, "Recalibration"), strict=True):
            np.testing.assert_array_equal(array, expected[tensor.name])


def test_numbers_are_cast_and_a_missing_axis_is_added_as_keras_does(rng):
    bytes_ = rng.integers(0, 256, (9, 4, 4)).astype("uint8")
    found = read((bytes_, np.zeros(9)), one_input(), "rank")
    np.testing.assert_array_equal(found.inputs[0], bytes_[..., None].astype("float32"))


def test_a_single_example_of_any_size_is_not_read_as_a_batch(arrays):
    model = one_input((None, None, 1))  # Keras takes one image for four of four pixels
    data = tf.data.Dataset.from_tensor_slices(arrays[:2])
    np.testing.assert_array_equal(read(data, model, "rank").inputs[0], arrays[0])
    np.testing.assert_array_equal(read(zip(*arrays, strict=True), model, "rank").inputs[0], arrays[0])
    np.testing.assert_array_equal(one_batch(data, model, "Recalibration")[0], arrays[0][:BATCH_SIZE])


@pytest.mark.parametrize(
    "kind", ["arrays", "batched tf.data", "unbatched tf.data", "PyDataset", "generator", "list of batches"]
)
def test_the_first_batch_of_a_data_set(kind, arrays):
    (found,) = one_batch(KINDS[kind](*arrays[:2]), one_input(), "Recalibration")
    size = {"arrays": COUNT, "batched tf.data": 64, "unbatched tf.data": BATCH_SIZE}.get(kind, 100)
    np.testing.assert_array_equal(found, arrays[0][:size])


@pytest.mark.parametrize("structure", ["dict", "list", "tuple"])
def test_labels_are_left_out_of_a_batch_of_several_inputs(structure, rng):
    a, b = rng.normal(size=(20, 4, 4, 1)).astype("float32"), rng.integers(0, 9, (20, 3))
    model, given = two_inputs(structure), {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (b, a)}[structure]
    for data in ((given, b), (given, b, np.ones(20)), [(given, b), (given, b)]):
        for tensor, array in zip(model.inputs, one_batch(data, model, "Recalibration"), strict=True):
            np.testing.assert_array_equal(array, {"a": a, "b": b}[tensor.name])


@pytest.mark.parametrize("make", [lambda x: (x,), lambda x: [x], lambda x: [x, x + 1], lambda x: tf.constant(x)])
def test_a_batch_may_stand_alone_in_a_tuple_or_list(make, arrays):
    (found,) = one_batch(make(arrays[0]), one_input(), "Recalibration")
    np.testing.assert_array_equal(found, arrays[0])


def wrong(x, y, w):
    other = np.zeros((5, 3, 3, 1), "float32")
    infinite = Batches(x, y)
    infinite.__class__ = type("Infinite", (Batches,), {"num_batches": None})
    return {
        "inputs only": (x,),
        "inputs.* only": tf.data.Dataset.from_tensors(x),
        "inputs only, from a list.*pass a tuple": [x, y],
        "a tuple of arrays .*Received: ndarray": x,
        "a tuple of arrays .*Received: dict": {"image": x},
        "a tuple of arrays .*Received: int": 3,
        "at least one batch of validation data": [],
        "examples. Received: .5, 257. examples": (x, y[:5]),
        "one row per example in every array": [(x, y[:5])],
        r"inputs of shape \(None, 4, 4, 1\).* Received: \(5, 3, 3, 1\)": (other, y[:5]),
        r"shape.* Received: \(2,\), then \(3,\)": [
            (x, np.zeros((COUNT, 2))),
            (x[:5], other[:, :, 0, 0]),
        ],
        "batches .*structure": [(x, y), (x, y, w)],
        "arrays of numbers .*Received: .*cat": (x, np.array(["cat"] * COUNT)),
        "arrays of numbers .*Received: 0": (x, [0] * COUNT),
        "an infinite tf.data.Dataset; use take": tf.data.Dataset.from_tensors((x, y)).repeat(),
        "a PyDataset": infinite,
    }


def test_what_cannot_be_read_is_refused(arrays):
    for message, data in wrong(*arrays).items():
        with pytest.raises(UserError, match=f"^rank: .*{message}"):
            read(data, one_input(), "rank")
    with pytest.raises(UserError, match="Recalibration: expected at least one batch of inputs"):
        one_batch(iter(()), one_input(), "Recalibration")
    with pytest.raises(UserError, match="Recalibration: expected inputs of shape"):
        one_batch(arrays[0], two_inputs("list"), "Recalibration")
    with pytest.raises(UserError, match=r"Recalibration: expected inputs of shape \(None, 4, 4, 1\).* \(5, 3, 3, 1\)"):
        one_batch((np.zeros((5, 3, 3, 1)), np.zeros(5)), one_input(), "Recalibration")
