"""Folders, and the bundled digits, as sources: what is read, in which order, and what is refused."""

import dataclasses
import pathlib
import random
import re

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
    assert splits.label_names == ("cat", "dog") and splits.inputs.shapes == (4, 5, 3)
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
    assert splits.sizes == {"train": 10, "validation": 6, "test": 4} and splits.inputs.shapes == (4, 5, 1)
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
    assert source.inputs.shapes[-1] == channels
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
        assert source.inputs.shapes == (16, 16, expected)
        assert {image.shape for image, _ in source.splits["test"]} == {(16, 16, expected)}


def test_different_sizes_need_an_image_size(tmp_path, rng, capfd):
    for i in range(8):
        write_png(tmp_path / "d" / "c" / f"{i}.png", pixels(rng, height=4 + i))
    chosen = settings(tmp_path / "d")
    with pytest.raises(UserError, match=r"data.image_size: .*png has \d+ x 5 pixels and .*png \d+ x 5; set --config"):
        pipeline.load(chosen, tmp_path)
    assert capfd.readouterr().err == ""
    splits = pipeline.load(dataclasses.replace(chosen, image_size=4), tmp_path)
    assert splits.inputs.shapes == (4, 4, 3) and {image.shape for image, _ in splits.train} == {(4, 4, 3)}


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


def test_a_file_of_two_splits_is_checked_once(tmp_path, monkeypatch):
    """Training and validation images are of one file."""
    checked, dataset = [], tf.data.TFRecordDataset

    def opened(file, **options):
        if isinstance(file, str):  # else by TFDS, in a graph
            checked.append(pathlib.Path(file).name.partition(".")[0])
        return dataset(file, **options)

    monkeypatch.setattr(tf.data, "TFRecordDataset", opened)
    sources.load(config.Data(train="train[:1000]", validation="train[1000:]"), tmp_path)
    assert checked == ["digits-train"]
