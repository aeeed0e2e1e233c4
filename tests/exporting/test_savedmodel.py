"""What a SavedModel answers: raw pixels, encoded files and ensembles, and what it refuses."""

import dataclasses
import io
import resource
import struct
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from classifier import DATA, NAMES, answers, network
from PIL import Image

from tfnas import config
from tfnas.data import pipeline
from tfnas.exporting import savedmodel
from tfnas.tasks import network_inputs


def written(path, model, chosen, ensemble=()):
    """The signatures of a SavedModel of `model`, for images as `chosen` says."""
    splits = pipeline.Splits(None, None, None, {}, network_inputs.one(model.input_shape[1:]), NAMES)
    savedmodel.write(model, splits, config.Config(data=chosen), path, ensemble)
    return tf.saved_model.load(str(path)).signatures


def encoded(image, form):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Images of one size only, and an ensemble of three."""
    keras.utils.set_random_seed(1)
    members = [network((12, 10, 3)) for _ in range(3)]
    for i, member in enumerate(members):
        member.layers[-1].bias.assign(np.random.default_rng(i).normal(0, 2, len(NAMES)))
    return members, written(tmp_path_factory.mktemp("fixed") / "model", members[0], DATA, members)


@pytest.fixture(scope="module")
def resized(tmp_path_factory):
    model = network((12, 12, 3))
    return model, written(tmp_path_factory.mktemp("resized") / "model", model, dataclasses.replace(DATA, image_size=12))


@pytest.mark.parametrize("number", [1, 6])
def test_raw_images_are_answered_with_probabilities_and_names(fixed, rng, number):
    members, served = fixed
    images = rng.integers(0, 256, (number, 12, 10, 3), np.uint8)
    answer = {key: value.numpy() for key, value in served["serving_default"](image=tf.constant(images)).items()}
    expected = answers(members[0], images)
    assert set(answer) == {"probabilities", "classes", "scores"} and answer["scores"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    order = np.argsort(-answer["probabilities"], axis=-1, kind="stable")[:, :5]
    assert answer["classes"].astype(str).tolist() == [[NAMES[i] for i in row] for row in order]
    np.testing.assert_array_equal(answer["scores"], np.take_along_axis(answer["probabilities"], order, -1))


def test_encoded_images_are_decoded_as_the_data_set_was(fixed, rng):
    """A JPEG's pixels depend on the decoder: the fast one, by which TFDS reads it, and no other."""
    members, served = fixed
    image = rng.integers(0, 256, (12, 10, 3), np.uint8)
    files = [encoded(image, form) for form in ("PNG", "JPEG", "BMP")]
    pixels = [tfds.features.Image(shape=(None, None, 3)).decode_example(file).numpy() for file in files[:2]]
    np.testing.assert_array_equal(pixels[0], image)
    answer = served["serve_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(answer["probabilities"], answers(members[0], [*pixels, image]), atol=1e-5)
    assert answer["classes"].shape == answer["scores"].shape == (3, 5)


def test_encoded_images_of_several_sizes_are_each_resized(resized, rng):
    model, served = resized
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((12, 12), (24, 36), (7, 9))]
    answer = served["serve_bytes"](image_bytes=tf.constant([encoded(image, "PNG") for image in images]))
    # Averages of whole areas in the second, the same in NumPy.
    halved = np.rint(images[1].reshape(12, 2, 12, 3, 3).mean((1, 3))).astype(np.uint8)
    np.testing.assert_allclose(answer["probabilities"][:2], answers(model, [images[0], halved]), atol=1e-5)
    for image, got in zip(images, answer["probabilities"], strict=True):
        alone = served["serving_default"](image=tf.constant(image[None]))["probabilities"][0]
        np.testing.assert_allclose(got, alone, atol=1e-6)


def test_uncertainty_is_the_ensembles(fixed, rng):
    members, served = fixed
    images = rng.integers(0, 256, (20, 12, 10, 3), np.uint8)
    answer = {key: value.numpy() for key, value in served["serve_uncertainty"](image=tf.constant(images)).items()}
    single = np.stack([answers(member, images) for member in members])
    mean = single.mean(0)
    np.testing.assert_allclose(answer["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(answer["entropy"], -(mean * np.log(mean)).sum(-1), atol=1e-4)
    disagreement = (single.argmax(-1) != mean.argmax(-1)).mean(0)
    assert 0 < disagreement.max() < 1
    np.testing.assert_allclose(answer["disagreement"], disagreement, atol=1e-6)
    assert answer["classes"][:, 0].astype(str).tolist() == [NAMES[i] for i in mean.argmax(-1)]
    np.testing.assert_allclose(answer["scores"], -np.sort(-mean, -1)[:, :5], atol=1e-5)


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ((2, 13, 10, 3), "fixed"),
        ((2, 10, 12, 3), "fixed"),
        ((0, 12, 10, 3), "fixed resized"),
        ((2, 12, 10, 1), "fixed resized"),
        ((12, 10, 3), "fixed resized"),
        ((1, 2, 12, 10, 3), "fixed resized"),
        ((1, 0, 12, 3), "fixed resized"),
    ],
)
def test_images_of_another_shape_are_refused_inside_the_signature(fixed, resized, shape, sizes):
    for (_, served), expected in ((fixed, "12, 10"), (resized, "H, W")):
        if ("fixed" if served is fixed[1] else "resized") not in sizes:
            continue
        for name in set(served) - {"serve_bytes"}:
            with pytest.raises(tf.errors.InvalidArgumentError) as error:
                served[name](image=tf.zeros(shape, tf.uint8))
            received = " ".join(map(str, shape))
            assert f"[image: shape (N, {expected}, 3) of one or more images expected. Received:] [{received}]" in str(
                error.value
            )


def test_bytes_that_are_no_such_image_are_refused_inside_the_signature(fixed, resized, rng):
    image = rng.integers(0, 256, (12, 10, 3), np.uint8)
    good, large = encoded(image, "PNG"), encoded(np.zeros((5, 9, 3), np.uint8), "PNG")
    other = "image_bytes: PNG or JPEG or BMP files expected. Received another, of number and length:"
    cases = [
        ([], "image_bytes: one or more files expected. Received:] [0]"),
        ([good, b"hello"], f"{other}] [1] [5]"),
        ([b""], f"{other}] [0] [0]"),
        ([encoded(image, "GIF")], f"{other}] [0] [{len(encoded(image, 'GIF'))}]"),
        ([good[:60]], "Invalid PNG data, size 60"),
    ]
    for served in (fixed[1], resized[1]):
        for files, message in cases:
            with pytest.raises(tf.errors.InvalidArgumentError) as error:
                served["serve_bytes"](image_bytes=tf.constant(files, tf.string))
            assert message in str(error.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        fixed[1]["serve_bytes"](image_bytes=tf.constant([good, large]))
    message = "image_bytes: images of 12 x 10 pixels expected. Received, of number and size:] [1] [5 9]"
    assert message in str(error.value)
    assert resized[1]["serve_bytes"](image_bytes=tf.constant([good, large]))["scores"].shape == (2, 5)


def claimed(height, width, form):
    """A short file whose header claims a size; made by hand, since no encoder would."""
    if form == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunks = [header, b"IDAT" + zlib.compress(bytes(99)), b"IEND"]
        packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    if form == "JPEG":
        whole = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
        place = whole.index(b"\xff\xc0") + 5  # of the height in the frame's header, the width behind it
        return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]
    whole = encoded(np.zeros((8, 8, 3), np.uint8), "BMP")
    return whole[:18] + struct.pack("<ii", width, -height) + whole[26:]


@pytest.mark.parametrize(
    "form, height, width",
    [
        ("PNG", 30_000, 30_000),
        ("PNG", 22_000, 22_000),  # which TensorFlow itself decodes
        ("PNG", 2**31 - 1, 1),
        ("PNG", 2**32 - 1, 2**32 - 1),
        ("PNG", 0, 5),
        ("JPEG", 60_000, 60_000),
        ("BMP", 30_000, 30_000),
    ],
)
def test_a_size_is_refused_by_the_header(fixed, resized, cut, form, height, width, monkeypatch):
    """Before any pixel of it takes memory: of 1.4 GB at the least, nothing is allocated."""
    file = claimed(height, width, form)
    for served in (fixed[1], resized[1], cut):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            served["serve_bytes"](image_bytes=tf.constant([file]))
        assert "pixels expected" in str(error.value) and "Received, of number and size:" in str(error.value)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Signatures that scale the shorter side and cut out the center; at most 10,000 pixels."""
    model, chosen = network((12, 12, 3)), dataclasses.replace(DATA, image_size=12, random_resized_crop=True)
    splits = pipeline.Splits(None, None, None, {}, network_inputs.one((12, 12, 3)), NAMES)
    path = tmp_path_factory.mktemp("cut") / "model"
    savedmodel.write(model, splits, config.Config(data=chosen, export=config.Export(max_pixels=10_000)), path)
    return tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize(
    "height, width, fits",
    # 12 / 0.875 squared, times the ratio of the sides: 10,000 is reached at a ratio of 53.2.
    [(100, 100, True), (100, 101, False), (2, 106, True), (106, 2, True), (2, 107, False), (1, 9000, False)],
)
def test_pixels_are_limited_as_sent_and_as_scaled(cut, height, width, fits):
    image = np.zeros((height, width, 3), np.uint8)
    requests = [
        ("serve_bytes", {"image_bytes": tf.constant([encoded(image, form)])}, "image_bytes: images of")
        for form in ("PNG", "JPEG", "BMP")
    ]
    for name, sent, title in (*requests, ("serving_default", {"image": tf.constant(image[None])}, "image:")):
        if fits:
            assert cut[name](**sent)["scores"].shape == (1, 5)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"{title} at most 10000 pixels expected"):
                cut[name](**sent)


def test_images_of_two_channels_come_in_no_file(tmp_path):
    chosen = dataclasses.replace(DATA, mean=(0.5,), std=(0.5,))
    assert set(written(tmp_path / "model", network((8, 8, 2)), chosen)) == {"serving_default"}
