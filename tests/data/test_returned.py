"""Functions as sources: what is read, in which order, and what is refused."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfnas import config
from tfnas.common.errors import UserError, unwrap_user_errors
from tfnas.data import pipeline
from tfnas.tasks.meanings import task_of


def arrays(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return list(images), list(labels)


def of_arrays(images, labels):
    return tf.data.Dataset.from_tensor_slices((np.asarray(images), np.asarray(labels)))


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Makes a function that returns what it is given the source; returns its settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def make(function, **changes):
        (tmp_path / "made_for_a_test.py").write_text("")
        module = sys.modules.pop("made_for_a_test", None) or __import__("made_for_a_test")
        module.load = function
        monkeypatch.setitem(sys.modules, "made_for_a_test", module)
        return config.Data(source="made_for_a_test:load", **changes)

    return make


@pytest.fixture
def three(rng):
    """Three good splits with 3 classes."""
    images = rng.integers(0, 256, (60, 4, 6, 3), np.uint8)
    labels = np.arange(60) % 3
    return {
        "train": of_arrays(images[:30], labels[:30]),
        "validation": of_arrays(images[30:45], labels[30:45].astype(np.int32)),
        "test": of_arrays(images[45:], labels[45:].astype(np.uint8)),
    }


def test_a_function_gives_the_splits(source, three, tmp_path):
    splits = pipeline.load(source(lambda: three), tmp_path)
    assert splits.sizes == {"train": 30, "validation": 15, "test": 15}
    assert splits.inputs.shapes == (4, 6, 3) and splits.label_names == ("0", "1", "2")
    for name in pipeline.SPLITS:
        ours, theirs = arrays(getattr(splits, name)), arrays(three[name])
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1] and getattr(splits, name).element_spec[1] == tf.TensorSpec((), tf.int64)


def test_a_function_is_given_the_settings_and_may_name_the_labels(source, three, tmp_path):
    given = []

    def load(settings):
        given.append(settings)
        return three, ["a", "b", "c", "never seen"]

    chosen = source(load)
    assert pipeline.load(chosen, tmp_path).label_names == ("a", "b", "c", "never seen")
    assert given == [chosen]
    named = {**three, "label_names": ("x", "y", "z")}
    assert pipeline.load(source(lambda: named), tmp_path).label_names == ("x", "y", "z")


def test_unknown_cardinality_is_counted_but_never_by_reading_test(source, three, tmp_path):
    def unreadable():
        pytest.fail("the test split was read")
        yield

    spec = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    generated = {
        "train": three["train"].filter(lambda image, label: True),
        "validation": three["validation"].filter(lambda image, label: label < 2),
        "test": tf.data.Dataset.from_generator(unreadable, output_signature=spec),
    }
    chosen = source(lambda: generated)
    splits = pipeline.load(chosen, tmp_path)
    assert splits.sizes == {"train": 30, "validation": 10}
    assert "test not counted" in splits.summary()
    list(pipeline.training_batches(splits, chosen, 10, 1, 0))
    list(pipeline.evaluation_batches(splits.validation, chosen, 10))


def test_images_of_different_sizes_from_a_function(source, tmp_path):
    def varied(seed):
        made = np.random.default_rng(seed)

        def generate():
            for i in range(6):
                yield made.integers(0, 256, (4 + i, 6, 3), np.uint8), i % 3

        spec = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int32))
        return tf.data.Dataset.from_generator(generate, output_signature=spec)

    splits = {"train": varied(0), "validation": varied(1), "test": varied(2)}
    with pytest.raises(UserError, match="data.image_size: .* 'made_for_a_test:load' have shape"):
        pipeline.load(source(lambda: splits), tmp_path)
    loaded = pipeline.load(source(lambda: splits, image_size=4), tmp_path)
    assert {image.shape for image, _ in loaded.test} == {(4, 4, 3)}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: None, "must return a dict of tf.data.Dataset or .* Received: NoneType"),
        (lambda s: {k: s[k] for k in ("train", "test")}, "Missing: validation"),
        (lambda s: {**s, "dev": s["test"]}, "Received: dev besides"),
        (
            lambda s: {**s, "test": [1]},
            "test of .* must be a tf.data.Dataset, or a tuple .* Received: list",
        ),
        (lambda s: {**s, "train": s["train"].batch(5)}, r"train of .*\(None, 4, 6, 3\).*do not batch them"),
        (lambda s: {**s, "test": s["test"].map(lambda x, y: x)}, "test of .* pairs"),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: (tf.cast(x, tf.float32) / 255, y))},
            "must be images uint8, or all values float32. Received: float32 in train, uint8 in validation, uint8 in",
        ),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: (tf.cast(x, tf.int64), y))},
            "train of .* or values float32, .* Received: inputs of int64; cast them to either",
        ),
        (
            lambda s: {**s, "train": (np.zeros((3, 9), np.uint8), np.zeros(3, int))},
            r"inputs uint8 \(9,\) and targets \(\); cast other inputs to float32",
        ),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: ({"image": x}, y))},
            "must have the same inputs. Received: image in train, one without a name in validation, one without",
        ),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: ((x, x), y))},
            "several inputs without names: make them a dict, whose keys are the names of the model's inputs",
        ),
        (
            lambda s: {**s, "test": s["test"].map(lambda x, y: ({"a-b": x}, y))},
            "names of letters, digits and underscores. Received: 'a-b'",
        ),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: (x, {"a": y, "b": y}))},
            "train of .* has the targets a, b, of several outputs: these need task='custom', .* task='classification'",
        ),
        (lambda s: {**s, "train": s["train"].map(lambda x, y: (x, tf.cast(y, tf.float32)))}, "targets of float32"),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: (x, 2 * tf.one_hot(y, 3, dtype=tf.int32)))},
            r"has the label \[2, 0, 0\]; expected one-hot",
        ),
        (
            lambda s: {**s, "train": s["train"].map(lambda x, y: (x, y, -1.0))},
            "has the weight -1.0; expected a finite number, at least 0",
        ),
        (
            lambda s: {**s, "train": (np.zeros((3, 4, 6, 3), np.uint8), np.zeros(4, int))},
            "one row per example. Received: shapes",
        ),
        (lambda s: {**s, "train": s["train"].repeat()}, "train of .* infinite"),
        (lambda s: {**s, "validation": s["validation"].take(0)}, "validation of .* is empty"),
        (lambda s: {**s, "validation": s["validation"].map(lambda x, y: (x, y - 1))}, "has the label -1"),
        (lambda s: {**s, "train": s["train"].map(lambda x, y: (x[..., :1], y))}, "channels .* Received: 1 and 3"),
        (lambda s: {**s, "validation": s["train"].take(7)}, "7 images are both in train and in validation"),
        (lambda s: (s, ["a", "b"]), "label 2 of .* no name; .* 2 names"),
        (lambda s: (s, ["a", "a", "b"]), "distinct. Received: \\['a'"),
        (lambda s: (s, "abc"), "label_names .* Received: 'abc'"),
        (lambda s: 1 // 0, r"'made_for_a_test:load' failed: ZeroDivisionError: .*test_returned.py, line \d+\)"),
    ],
)
def test_wrong_returns_are_refused(source, three, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline.load(source(lambda: change(three)), tmp_path)
    assert str(caught.value).startswith("data.source: ") and "\n" not in str(caught.value)


@pytest.fixture
def rows(rng):
    """Three good splits of rows of a table, in float64, some of them the same in train and in validation."""
    table, labels = rng.normal(size=(60, 5)), np.arange(60) % 3
    table[30:33] = table[:3]
    return {
        "train": (table[:30], labels[:30]),
        "validation": (table[30:45], labels[30:45]),
        "test": (table[45:], labels[45:]),
    }


def test_values_reach_the_network_as_they_are(source, rows, tmp_path):
    chosen = source(lambda: rows)
    splits = pipeline.load(chosen, tmp_path)
    assert splits.summary() == "5, 3 classes -> train 30 / validation 15 / test 15"
    assert splits.raw == tf.TensorSpec((None, 5), tf.float32, name="inputs")
    ((inputs, labels),) = pipeline.evaluation_batches(splits.test, chosen, 15).as_numpy_iterator()
    np.testing.assert_array_equal(inputs, rows["test"][0].astype(np.float32))
    np.testing.assert_array_equal(labels, rows["test"][1])
    seen = [inputs for inputs, _ in pipeline.training_batches(splits, chosen, 10, 1, 0).as_numpy_iterator()]
    assert sorted(map(tuple, np.concatenate(seen))) == sorted(map(tuple, rows["train"][0].astype(np.float32)))
    assert pipeline._input_bytes(splits) == 20


def _with_a_hole(split):
    inputs, labels = split
    return np.where(np.arange(inputs.size).reshape(inputs.shape) == 7, np.nan, inputs), labels


@pytest.mark.parametrize(
    "change, message, settings",
    [
        (lambda r: {**r, "train": _with_a_hole(r["train"])}, "data.source: train of .* numbers that are not fin", {}),
        (lambda r: {**r, "validation": (r["train"][0], r["train"][1])}, "data.source: 30 examples are both in", {}),
        (
            lambda r: {**r, "validation": (r["validation"][0][:, :4], r["validation"][1])},
            r"data.source: inputs of .* must have one shape. Received: \(4,\) and \(5,\)",
            {},
        ),
        (
            lambda r: {**r, "test": (r["test"][0][:, None], r["test"][1])},
            r"data.source: test of .* has examples of shape \(1, 5\); expected \(5,\)",
            {},
        ),
        (
            lambda r: {**r, "train": tf.data.Dataset.from_tensor_slices(r["train"]).batch(5)},
            r"one known shape. Received: \(None,\); do not batch them",
            {},
        ),
        (lambda r: r, r"'data.mean' must be left out: .* returns values, .*Received: \(0.3,\)", {"mean": (0.3,)}),
        (lambda r: r, "'data.flip' must be left out", {"flip": True}),
    ],
)
def test_values_that_cannot_be_taken_are_refused(source, rows, tmp_path, change, message, settings):
    with pytest.raises(UserError, match=message):
        pipeline.load(source(lambda: change(rows), **settings), tmp_path)


def test_values_of_test_are_checked_when_they_are_read(source, rows, tmp_path):
    splits = pipeline.load(source(lambda: {**rows, "test": _with_a_hole(rows["test"])}), tmp_path)
    with pytest.raises(UserError, match="test of .* has an input with numbers that are not finite"):
        with unwrap_user_errors():
            list(splits.test)


def test_a_bad_test_split_is_refused_when_it_is_read(source, three, tmp_path):
    def other_shape():
        yield np.zeros((2, 6, 3), np.uint8), 0

    spec = (tf.TensorSpec((None, 6, 3), tf.uint8), tf.TensorSpec((), tf.int32))
    for test, message in (
        (three["test"].map(lambda x, y: (x, y + 5)), "data.source: test of .* label 5; .*0 to 2"),
        (tf.data.Dataset.from_generator(other_shape, output_signature=spec), r"has an image of shape \(2, 6, 3\)"),
    ):
        splits = pipeline.load(source(lambda test=test: {**three, "test": test}), tmp_path)
        with pytest.raises(UserError, match=message), unwrap_user_errors():
            list(splits.test)
    with pytest.raises(UserError, match=r"test of .* has images of shape \(2, 6, 3\); .*\(4, 6, 3\)"):
        pipeline.load(source(lambda: {**three, "test": three["test"].map(lambda x, y: (x[:2], y))}), tmp_path)


@pytest.fixture
def named(three, rows):
    """Images, rows of a table in float64, and labels; as arrays and as a data set."""

    def of(split):
        images, labels = arrays(three[split])
        return {"image": np.stack(images), "row": rows[split][0]}, np.array(labels)

    return {
        "train": of("train"),
        "validation": tf.data.Dataset.from_tensor_slices(of("validation")),
        "test": of("test"),
    }


def test_several_inputs_have_names(source, named, tmp_path):
    chosen = source(lambda: named, mean=(0.1,), std=(0.5,))
    splits = pipeline.load(chosen, tmp_path)
    assert splits.summary() == "image 4x6x3, row 5, 3 classes -> train 30 / validation 15 / test 15"
    assert splits.raw == {
        "image": tf.TensorSpec((None, 4, 6, 3), tf.uint8, name="image"),
        "row": tf.TensorSpec((None, 5), tf.float32, name="row"),
    }
    ((given, labels),) = pipeline.evaluation_batches(splits.test, chosen, 15).as_numpy_iterator()
    np.testing.assert_allclose(given["image"], (named["test"][0]["image"] / 255 - 0.1) / 0.5, atol=1e-6)
    np.testing.assert_array_equal(given["row"], named["test"][0]["row"].astype(np.float32))
    np.testing.assert_array_equal(labels, named["test"][1])
    assert pipeline._input_bytes(splits) == 4 * 6 * 3 + 4 * 5


def test_of_several_inputs_the_only_image_is_augmented_as_one_without_a_name(source, named, three, tmp_path):
    changes = {"flip": True, "pad_crop": 2, "cutout": 2}
    chosen = source(lambda: named, **changes)
    batches = pipeline.training_batches(pipeline.load(chosen, tmp_path), chosen, 10, 2, 3)
    alone = source(lambda: three, **changes)
    expected = pipeline.training_batches(pipeline.load(alone, tmp_path), alone, 10, 2, 3)
    rows = {
        tuple(row): label
        for row, label in zip(named["train"][0]["row"].astype(np.float32), named["train"][1], strict=True)
    }
    for (given, labels), (images, others) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(given["image"], images)
        np.testing.assert_array_equal(labels, others)
        assert [rows[tuple(row)] for row in given["row"].numpy()] == labels.numpy().tolist()


def test_images_of_several_inputs_are_resized_and_not_changed_at_random(source, named, tmp_path):
    def two():
        both = {}
        for split in ("train", "test"):
            inputs, labels = named[split]
            both[split] = ({"left": inputs["image"], "right": inputs["image"][:, :3]}, labels)
        return {**both, "validation": (both["test"][0], both["test"][1])}

    splits = pipeline.load(source(two, image_size=2), tmp_path)
    assert splits.inputs.shapes == {"left": (2, 2, 3), "right": (2, 2, 3)}
    words = r"'data.flip' must be left out: .* returns several images of an example \(left, right\). Received: True"
    with pytest.raises(UserError, match=words):
        pipeline.load(source(two, flip=True), tmp_path)
    with pytest.raises(UserError, match=r"test of .* has 'row' of shape \(4,\); expected \(5,\)"):
        short = {**named["test"][0], "row": named["test"][0]["row"][:, :4]}
        pipeline.load(source(lambda: {**named, "test": (short, named["test"][1])}), tmp_path)
    with pytest.raises(UserError, match="all inputs 'row' of .* Received: uint8 in train, float64 in validation"):
        pixels = {**named["train"][0], "row": named["train"][0]["image"]}
        pipeline.load(source(lambda: {**named, "train": (pixels, named["train"][1])}), tmp_path)


def test_a_mask_belongs_to_the_only_input_with_three_axes(source, named, tmp_path):
    def masks(**more):
        made = {}
        for split in ("train", "test"):
            inputs = named[split][0]
            made[split] = ({**inputs, **{name: inputs["image"] for name in more}}, inputs["image"][..., 0] // 128)
        return {**made, "validation": made["test"]}

    segmentation = task_of("segmentation")
    splits = pipeline.load(source(masks), tmp_path, segmentation)
    assert splits.head == (None, 4, 6, 2)
    with pytest.raises(UserError, match="one input .* which the mask belongs to. Received: 2; stack them"):
        pipeline.load(source(lambda: masks(other=True)), tmp_path, segmentation)


def test_several_targets_have_names(source, three, tmp_path):
    custom = task_of("custom", "made_for_a_test:loss", "made_for_a_test:metric", "min")

    def named(**parts):
        both = {split: three[split].map(lambda x, y: (x, {"sign": y, "half": y / 2})) for split in three}
        return {**both, **parts}

    splits = pipeline.load(source(named), tmp_path, custom)
    assert splits.output_names == ("half", "sign") and splits.label_names == ()
    targets = [target for _, target in splits.test.as_numpy_iterator()]
    np.testing.assert_array_equal([target["half"] for target in targets], np.arange(45, 60) % 3 / 2)
    np.testing.assert_array_equal([target["sign"] for target in targets], np.arange(45, 60) % 3)
    few = {split: three[split].map(lambda x, y: (x, {"sign": y})) for split in three}
    with pytest.raises(UserError, match="have the same targets. Received: half and sign in train, .*, sign in test"):
        pipeline.load(source(lambda: named(test=few["test"])), tmp_path, custom)
    with pytest.raises(UserError, match="are a dict with one key, 'sign': return them without it"):
        pipeline.load(source(lambda: few), tmp_path, custom)
