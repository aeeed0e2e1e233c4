"""Folders and functions as sources: what is read, in which order, and what is refused."""

import dataclasses
import pathlib
import random
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfnas import config
from tfnas.common.errors import UserError, unwrap_user_errors
from tfnas.data import pipeline, sources
from tfnas.data.sources import folders
from tfnas.training import networks


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


def pixels(rng, height=4, width=5, channels=3):
    return rng.integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def flat(tmp_path, rng):
    """DIR/CLASS/*.png: 40 cats and 60 dogs; returns DIR and the images by (class, file)."""
    images = {}
    for name, count in (("cat", 40), ("dog", 60)):
        for i in range(count):
            images[name, f"{i:02d}.png"] = image = pixels(rng)
            write_png(tmp_path / "pets" / name / f"{i:02d}.png", image)
    (tmp_path / "pets" / ".DS_Store").write_text("")
    (tmp_path / "pets" / "cat" / "Thumbs.db").write_text("")
    return tmp_path / "pets", images


def settings(folder, **changes):
    chosen = {"train": "train[:50%]", "validation": "train[50%:75%]", "test": "train[75%:]", **changes}
    return config.Data(folder=str(folder), **chosen)


def arrays(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return list(images), list(labels)


def test_a_folder_per_class_is_one_split(flat, tmp_path):
    folder, images = flat
    splits = pipeline.load(settings(folder), tmp_path)
    assert splits.label_names == ("cat", "dog") and splits.input_shape == (4, 5, 3)
    assert splits.sizes == {"train": 50, "validation": 25, "test": 25}
    read = [arrays(part) for part in (splits.train, splits.validation, splits.test)]
    got = sorted((label, image.tobytes()) for images, labels in read for image, label in zip(images, labels))  # noqa: B905
    assert got == sorted((("cat", "dog").index(name), image.tobytes()) for (name, _), image in images.items())
    for _, labels in read:  # no part holds one class only, as it would in the files' order; 0.6 expected
        assert 0.35 < np.mean(labels) < 0.85


def test_a_folders_order_is_that_of_the_names_alone(flat, tmp_path, monkeypatch):
    folder, _ = flat
    first = arrays(pipeline.load(settings(folder), tmp_path).train)
    original = folders.pathlib.Path.iterdir
    monkeypatch.setattr(folders.pathlib.Path, "iterdir", lambda self: reversed(list(original(self))))
    moved = folder.rename(tmp_path / "moved")
    again = arrays(pipeline.load(settings(moved), tmp_path).train)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_a_folder_per_split(tmp_path, rng):
    images = {}
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        for name in ("a", "b"):
            for i in range(count):
                images[split, name, i] = pixels(rng, channels=1)
                write_png(tmp_path / "d" / split / name / f"{i}.PNG", images[split, name, i])
    chosen = settings(tmp_path / "d", train="train", validation="validation", test="test")
    splits = pipeline.load(chosen, tmp_path)
    assert splits.sizes == {"train": 10, "validation": 6, "test": 4} and splits.input_shape == (4, 5, 1)
    got, labels = arrays(splits.validation)
    expected = {images["validation", name, i].tobytes(): "ab".index(name) for name in "ab" for i in range(3)}
    assert {image.tobytes(): label for image, label in zip(got, labels, strict=True)} == expected


def test_a_class_may_be_called_train(tmp_path, rng):
    for name in ("train", "plane"):
        write_png(tmp_path / "d" / name / "0.png", pixels(rng))
        write_png(tmp_path / "d" / name / "1.png", pixels(rng))
    splits = pipeline.load(
        settings(tmp_path / "d", train="train[:2]", validation="train[2:3]", test="train[3:]"), tmp_path
    )
    assert splits.label_names == ("plane", "train")


def test_jpegs_are_decoded_as_tensorflow_does(tmp_path, rng):
    content = tf.io.encode_jpeg(pixels(rng, 16, 16)).numpy()
    for i in range(3):
        (tmp_path / "d" / "c").mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / "c" / f"{i}.jpg").write_bytes(content)
    splits = pipeline.load(
        settings(tmp_path / "d", train="train[:1]", validation="train[1:2]", test="train[2:]"), tmp_path
    )
    np.testing.assert_array_equal(arrays(splits.train)[0][0], tf.io.decode_jpeg(content))


def picture(path, rng, mode="RGB", **options):
    image = Image.fromarray(pixels(rng, 16, 16)).convert("I;16" if mode == "I;16" else mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


GRAY = [("L", "png"), ("LA", "png"), ("I;16", "png"), ("1", "png"), ("L", "jpg")]
COLORED = [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("RGB", "jpg"), ("CMYK", "jpg")]


@pytest.mark.parametrize("mode, ending", GRAY + COLORED)
def test_a_header_says_what_is_gray(tmp_path, rng, mode, ending):
    files = {"plain": {}}
    if ending == "jpg":
        files |= {"progressive": {"progressive": True}, "long": {"exif": b"Exif\0\0" + bytes(65_000)}}
    for name, options in files.items():
        picture(tmp_path / f"{name}.{ending}", rng, mode, **options)
        content = (tmp_path / f"{name}.{ending}").read_bytes()
        if mode != "CMYK":  # which TensorFlow decodes only if it is told to what
            decoded = tf.io.decode_image(content, expand_animations=False).shape[-1]
            assert ((mode, ending) in GRAY) == (decoded < 3)
        assert folders._is_gray(str(tmp_path / f"{name}.{ending}")) == ((mode, ending) in GRAY)
        for end in (0, 1, 3, 20, 25, 30, len(content) // 2):
            (tmp_path / "cut").write_bytes(content[:end])
            folders._is_gray(str(tmp_path / "cut"))  # no error: it is told when it is decoded


@pytest.mark.parametrize("position", [0, 50, 74, 99])
@pytest.mark.parametrize("image_size", [0, 8])
def test_one_image_in_color_makes_a_folder_color(tmp_path, rng, position, image_size):
    """Wherever it stands in train or validation, after however many gray ones; test is not looked at."""
    for i in range(100):
        picture(tmp_path / "d" / "c" / f"{i}.jpg", rng, "L")
    colored = pathlib.Path(folders._files(tmp_path / "d")["train"][position][0])
    picture(colored, rng, "RGB")
    chosen = settings(tmp_path / "d", image_size=image_size)
    source = sources.load(chosen, tmp_path)
    channels = 1 if position == 99 else 3
    assert source.input_shape[-1] == channels
    split, place = {0: ("train", 0), 50: ("validation", 50), 74: ("validation", 50), 99: ("test", 75)}[position]
    image = arrays(source.splits[split])[0][position - place]
    np.testing.assert_array_equal(image, tf.io.decode_jpeg(colored.read_bytes(), channels=channels))
    others = arrays(source.splits["train"])[0][1:]
    assert {image.shape[-1] for image in others} == {channels} and all(np.ptp(image, -1).max() == 0 for image in others)


def test_a_folder_has_the_channels_asked_for(tmp_path, rng):
    for i in range(4):
        picture(tmp_path / "d" / "c" / f"{i}.png", rng, "L" if i % 2 else "RGBA")
    chosen = settings(tmp_path / "d", train="train[:2]", validation="train[2:3]", test="train[3:]")
    for channels, expected in ((0, 3), (1, 1), (3, 3)):
        source = sources.load(dataclasses.replace(chosen, channels=channels), tmp_path)
        assert source.input_shape == (16, 16, expected)
        assert {image.shape for image, _ in source.splits["test"]} == {(16, 16, expected)}


def test_different_sizes_need_an_image_size(tmp_path, rng, capfd):
    for i in range(8):
        write_png(tmp_path / "d" / "c" / f"{i}.png", pixels(rng, height=4 + i))
    chosen = settings(tmp_path / "d")
    with pytest.raises(UserError, match=r"data.image_size: .*png has \d+ x 5 pixels and .*png \d+ x 5; set --config"):
        pipeline.load(chosen, tmp_path)
    assert capfd.readouterr().err == ""
    splits = pipeline.load(dataclasses.replace(chosen, image_size=4), tmp_path)
    assert splits.input_shape == (4, 4, 3) and {image.shape for image, _ in splits.train} == {(4, 4, 3)}


@pytest.mark.parametrize("image_size", [0, 4])
@pytest.mark.parametrize("position", [0, 20, 60])
def test_one_file_of_many_that_is_no_image_is_named(flat, tmp_path, image_size, position, capfd):
    chosen = settings(flat[0], image_size=image_size)
    broken = pathlib.Path(folders._files(flat[0])["train"][position][0])
    whole = broken.read_bytes()
    for content in (b"", b"not an image", whole[:30], whole[:-20]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=f"^data.folder: {re.escape(str(broken))} "):
            pipeline.load(chosen, tmp_path)
    assert capfd.readouterr().err == ""
    broken.write_bytes(whole + b"what some cameras append")
    pipeline.load(chosen, tmp_path)


def test_a_file_damaged_inside_is_named_when_it_is_read(flat, tmp_path):
    chosen = settings(flat[0], image_size=4)
    names = [name for name, _ in folders._files(flat[0])["train"]]
    networks.set_seed(0)
    for position in (20, 80):
        content = bytearray(pathlib.Path(names[position]).read_bytes())
        content[45:-20] = bytes(len(content) - 65)
        pathlib.Path(names[position]).write_bytes(content)
    splits = pipeline.load(chosen, tmp_path)
    with pytest.raises(UserError, match=f"^data.folder: {re.escape(names[20])} "), unwrap_user_errors():
        list(pipeline.training_batches(splits, chosen, 10, 1, 0))
    assert len(list(splits.validation)) == 25
    with pytest.raises(UserError, match=f"^data.folder: {re.escape(names[80])} "), unwrap_user_errors():
        list(splits.test)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "data.folder: .* Received: '.*/d'"),
        ({"a.png": 1}, "classes .*/d. Received: file a.png"),
        ({"cat/a.png": 1, "train/cat/a.png": 1}, "Received: cat .* files, train .* folders"),
        ({"cat/a.gif": 1}, r"\.jpg, \.jpeg, \.png .*Received: .*/d/cat/a.gif"),
        ({"train/cat/a.png": 1, "train/b.png": 1}, "classes .*/train. Received: file b.png"),
        ({"train/cat/x/a.png": 1, "test/cat/a.png": 1}, "Received: .*/train/cat/x"),
        ({"cat/a.png": 1, "dog/.hidden": 1}, ".*/d/dog is empty"),
        ({"cat/a.png": 1}, "data.validation: .* is empty"),
    ],
)
def test_bad_folders_are_refused(tmp_path, rng, files, message):
    for name in files:
        write_png(tmp_path / "d" / name, pixels(rng))
    with pytest.raises(UserError, match=message):
        pipeline.load(settings(tmp_path / "d", train="train[:1]", validation="train[1:]", test="train[1:]"), tmp_path)


def test_overlapping_parts_of_a_folder_are_refused(flat, tmp_path):
    with pytest.raises(UserError, match="overlap: both hold train"):
        pipeline.load(settings(flat[0], validation="train[40%:]"), tmp_path)
    with pytest.raises(UserError, match=r"data.test: 'test' is not a split of \['train'\]"):
        pipeline.load(settings(flat[0], test="test"), tmp_path)


# Functions.


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
    assert splits.input_shape == (4, 6, 3) and splits.label_names == ("0", "1", "2")
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
        (lambda s: {**s, "train": s["train"].map(lambda x, y: ({"image": x}, y))}, "for several .* tfnas.shrink from"),
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
        (lambda s: 1 // 0, r"'made_for_a_test:load' failed: ZeroDivisionError: .*test_sources.py, line \d+\)"),
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


def test_weights_do_not_depend_on_whether_the_digits_were_prepared_before(tmp_path):
    drawn = []
    for _ in range(2):
        networks.set_seed(0)
        sources.load(config.Data(), tmp_path)
        drawn.append((random.random(), np.random.random(), float(tf.random.uniform(()))))
    assert drawn[0] == drawn[1]


def test_damaged_digits_are_named(tmp_path):
    sources.load(config.Data(), tmp_path)
    place = tmp_path / "digits" / "1.0.0"
    (train,) = place.glob("digits-train*")
    (test,) = place.glob("digits-test*")
    info = place / "dataset_info.json"

    def refused(file, content, action=sources.load):
        before = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError, match="truncated or altered") as raised:
            action(config.Data(), tmp_path)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
        file.write_bytes(before)

    whole = train.read_bytes()
    refused(train, whole[: len(whole) // 2])
    refused(train, b"")  # no record at all has no checksum that could differ
    refused(train, whole[:20000] + bytes([whole[20000] ^ 1]) + whole[20001:])
    text = info.read_text()
    refused(info, text.replace('"1397"', '"1297"').encode())
    refused(info, text[:100].encode())
    # The test split is looked at only before it is read.
    refused(test, b"destroyed", sources.check_test)
    test.write_bytes(b"destroyed")
    sources.load(config.Data(), tmp_path)
