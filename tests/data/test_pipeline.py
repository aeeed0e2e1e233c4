import dataclasses

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from tfnas import config
from tfnas.common.errors import UserError
from tfnas.data import pipeline
from tfnas.tasks import network_inputs
from tfnas.training import building, networks

DIGITS = config.Data(name="digits", train="train[:1000]", validation="train[1000:]", test="test")


def arrays(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(images), np.array(labels)


def test_digits_are_scikit_learns_and_splits_disjoint(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)
    assert splits.sizes == {"train": 1000, "validation": 397, "test": 400}
    assert splits.inputs.shapes == (8, 8, 1) and splits.label_names == tuple("0123456789")
    ours = [arrays(part) for part in (splits.train, splits.validation, splits.test)]
    images = np.concatenate([i for i, _ in ours])
    labels = np.concatenate([label for _, label in ours])
    theirs = sklearn.datasets.load_digits()

    def sorted_rows(pixels, targets):
        rows = np.concatenate([pixels.reshape(1797, 64), targets[:, None]], 1)
        return rows[np.lexsort(rows.T)]

    expected = np.round(theirs.images * 255 / 16)
    np.testing.assert_array_equal(sorted_rows(images, labels), sorted_rows(expected, theirs.target))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"validation": "train[900:]"}, r"overlap: both hold train\[900:1000\]; splits must be disjoint"),
        ({"test": "train[:5]"}, r"data.train 'train\[:1000\]' and data.test 'train\[:5\]' overlap"),
        ({"validation": "train[1397:]"}, r"data.validation: 'train\[1397:\]' is empty"),
        ({"validation": "dev"}, r"data.validation: 'dev' is not a split of \['test', 'train'\]"),
        ({"train": "train[oops]"}, r"data.train: 'train\[oops\]' is not a split"),
        ({"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, "data.mean and data.std: .*Received: \\(0.1"),
    ],
)
def test_bad_splits_are_refused(digits_folder, change, message):
    with pytest.raises(UserError, match=message):
        pipeline.load(dataclasses.replace(DIGITS, **change), digits_folder)


def test_unknown_and_absent_data_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match="no TFDS data set 'cifar11'; did you mean 'cifar10'?"):
        pipeline.load(config.Data(name="cifar11"), tmp_path)
    with pytest.raises(UserError, match="'mnist' is not prepared in .*: set --config.data.data_dir or TFDS_DATA_DIR"):
        pipeline.load(config.Data(name="mnist", data_dir=str(tmp_path)), tmp_path)


def test_standardize_by_hand():
    settings = config.Data(mean=(0.5, 0.25), std=(0.25, 0.5))
    image = tf.constant([[[0, 255], [51, 102]]], tf.uint8)
    np.testing.assert_allclose(pipeline.standardize(image, settings), [[[-2, 1.5], [-1.2, 0.3]]], rtol=1e-6)


def test_resize_averages_areas():
    image = tf.constant(np.arange(16).reshape(4, 4, 1), tf.uint8)
    # (0 + 1 + 4 + 5) / 4 = 2.5 and so on; halves go to the even number.
    np.testing.assert_array_equal(pipeline.resize(image, 2)[..., 0], [[2, 4], [10, 12]])


def test_image_size_resizes(digits_folder):
    splits = pipeline.load(dataclasses.replace(DIGITS, image_size=4), digits_folder)
    assert splits.inputs.shapes == (4, 4, 1)
    assert next(iter(splits.train))[0].shape == (4, 4, 1)


def test_a_network_that_cannot_take_the_images_says_what_to_do(digits_folder):
    settings = config.Config(data=dataclasses.replace(DIGITS, image_size=7))
    splits = pipeline.load(settings.data, digits_folder)
    with pytest.raises(UserError, match=r"divisible by 4. Received: \(7, 7, 1\); .* set --config.data.image_size"):
        building.network(settings, splits)


def test_epochs_are_shuffled_complete_and_resume_exactly(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)

    def epochs(first):
        networks.set_seed(0)
        settings = dataclasses.replace(DIGITS, pad_crop=1, flip=True, cutout=3)
        batches = pipeline.training_batches(splits, settings, 100, epochs=3, seed=0, first_step=10 * first)
        return list(batches.as_numpy_iterator())

    whole = epochs(0)
    assert len(whole) == 30
    labels = [np.concatenate([y for _, y in whole[i : i + 10]]) for i in (0, 10, 20)]
    assert not np.array_equal(labels[0], labels[1])
    expected = np.bincount(arrays(splits.train)[1])
    for epoch in labels:
        np.testing.assert_array_equal(np.bincount(epoch), expected)
    for ours, resumed in zip(whole[20:], epochs(2), strict=True):
        np.testing.assert_array_equal(ours[0], resumed[0])
        np.testing.assert_array_equal(ours[1], resumed[1])


def test_augmentation_moves_flips_and_blanks(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)

    def first_epoch(**options):
        networks.set_seed(0)
        settings = dataclasses.replace(DIGITS, **options)
        return next(pipeline.training_batches(splits, settings, 1000, 1, 0).as_numpy_iterator())[0]

    plain = first_epoch()
    flipped = first_epoch(flip=True)
    mirrored = [np.array_equal(f, p[:, ::-1]) and not np.array_equal(f, p) for f, p in zip(flipped, plain, strict=True)]
    kept = [np.array_equal(f, p) for f, p in zip(flipped, plain, strict=True)]
    assert 400 < sum(mirrored) < 600 and sum(mirrored) + sum(kept) == 1000
    blanked = (first_epoch(cutout=4) != plain).sum((1, 2, 3))
    assert 0 < blanked.mean() < 16 and blanked.max() <= 16
    cropped = first_epoch(pad_crop=2)
    assert cropped.shape == plain.shape
    still = np.mean([np.array_equal(c, p) for c, p in zip(cropped, plain, strict=True)])
    assert 0.01 < still < 0.09  # one position of 25


def test_too_large_a_batch_is_refused(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)
    with pytest.raises(UserError, match="batch_size: .*1000.* Received: 1001"):
        pipeline.training_batches(splits, DIGITS, 1001, 1, 0)


def test_real_cifar10(cifar10_folder, tmp_path):
    settings = config.Data(
        name="cifar10", data_dir=str(cifar10_folder), train="train[:100]", validation="train[45000:]", image_size=16
    )
    splits = pipeline.load(settings, tmp_path)
    assert splits.sizes == {"train": 100, "validation": 5000, "test": 10000}
    assert splits.inputs.shapes == (16, 16, 3) and splits.label_names[3] == "cat"
    images, labels = next(iter(pipeline.evaluation_batches(splits.train, settings, 100)))
    assert images.shape == (100, 16, 16, 3) and images.dtype == tf.float32
    assert set(labels.numpy()) == set(range(10))


def test_a_reader_that_stops_early_takes_nothing_from_the_next(digits_folder):
    for _ in range(10):
        splits = pipeline.load(DIGITS, digits_folder)
        next(iter(pipeline.evaluation_batches(splits.validation, DIGITS, 16)))
        assert sum(len(labels) for _, labels in pipeline.evaluation_batches(splits.validation, DIGITS, 500)) == 397


RANDOM_PARTS = dataclasses.replace(DIGITS, image_size=8, random_resized_crop=True)


def place_image(height, width):
    """An image whose pixels tell where they are: channel 0 the row, channel 1 the column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def of_images(images):
    dataset = tf.data.Dataset.from_generator(
        lambda: ((image, 0) for image in images),
        output_signature=(tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64)),
    )
    return pipeline.Splits(
        dataset,
        dataset,
        dataset,
        {"train": len(images), "validation": 1, "test": 1},
        network_inputs.one((8, 8, 3)),
        ("a",),
    )


def test_random_parts_have_the_areas_and_aspects_that_are_usual():
    height, width, count = 90, 120, 400
    settings = dataclasses.replace(RANDOM_PARTS, image_size=30, mean=(0.0,), std=(1 / 255,))
    networks.set_seed(0)
    splits = of_images([place_image(height, width)] * count)
    images = next(pipeline.training_batches(splits, settings, count, 1, 0).as_numpy_iterator())[0]
    assert images.shape == (count, 30, 30, 3)
    # Over n output pixels a part of h rows runs through (n - 1) / n of its height, but for the half pixels at its ends.
    heights = (images[:, -1, 0, 0] - images[:, 0, 0, 0]) * 30 / 29
    widths = (images[:, 0, -1, 1] - images[:, 0, 0, 1]) * 30 / 29
    areas, aspects = heights * widths / (height * width), widths / heights
    assert 0.06 < areas.min() < 0.2 and 0.85 < areas.max() < 1.03
    assert 0.70 < aspects.min() < 0.85 and 1.18 < aspects.max() < 1.40
    assert len(np.unique(images[:, 0, 0, :2], axis=0)) > count / 2  # from everywhere


def test_random_parts_resume_exactly(rng):
    splits = of_images([rng.integers(0, 256, (9 + i, 12, 3), np.uint8) for i in range(20)])

    def epochs(first):
        networks.set_seed(0)
        return list(pipeline.training_batches(splits, RANDOM_PARTS, 5, 3, 0, 4 * first).as_numpy_iterator())

    whole, resumed = epochs(0), epochs(2)
    assert not np.array_equal(whole[0][0], whole[4][0])
    for ours, theirs in zip(whole[8:], resumed, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_shares_of_all_processes_and_replicas_are_the_global_batches_from_any_step(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)
    settings = dataclasses.replace(DIGITS, pad_crop=1, flip=True)

    def batches(first_step, *share):
        networks.set_seed(0)
        made = pipeline.training_batches(splits, settings, 120, 2, 0, first_step, pipeline.Share(*share))
        return list(made.as_numpy_iterator())

    whole = batches(0)
    assert len(whole) == 16  # 8 full batches of 1,000 images in each of two epochs
    for first in (0, 5, 11):
        shares = [batches(first, process, 2, 3) for process in range(2)]
        for step, (images, labels) in enumerate(whole[first:]):
            parts = [part for share in shares for part in share[3 * step : 3 * step + 3]]
            np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), images)
            np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), labels)
        assert all(len(share) == 3 * (16 - first) for share in shares)


def test_a_batch_that_replicas_cannot_share_equally_is_refused(digits_folder):
    splits = pipeline.load(DIGITS, digits_folder)
    with pytest.raises(UserError, match="batch_size: .*8.* Received: 100"):
        pipeline.training_batches(splits, DIGITS, 100, 1, 0, 0, pipeline.Share(0, 2, 4))


@pytest.mark.parametrize("height, width", [(64, 96), (96, 64), (200, 100), (17, 90), (5, 6)])
def test_evaluation_takes_the_center_of_the_whole(height, width):
    size = 28
    settings = dataclasses.replace(RANDOM_PARTS, image_size=size)
    image = pipeline.prepare(tf.constant(place_image(height, width)), settings).numpy().astype(float)
    assert image.shape == (size, size, 3)
    step = min(height, width) * 0.875 / size  # of the original's pixels, between two of the result's
    middle = image[..., :2].mean((0, 1))
    np.testing.assert_allclose(middle, [(height - 1) / 2, (width - 1) / 2], atol=max(1.0, step))
    np.testing.assert_allclose(image[-3, 0, 0] - image[2, 0, 0], step * (size - 5), atol=max(1.5, 1.5 * step))
    np.testing.assert_allclose(image[0, -3, 1] - image[0, 2, 1], step * (size - 5), atol=max(1.5, 1.5 * step))


def test_a_batch_is_prepared_as_its_images_are(rng):
    images = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    for settings in (DIGITS, dataclasses.replace(DIGITS, image_size=8), RANDOM_PARTS):
        one_by_one = [pipeline.prepare(tf.constant(image), settings) for image in images]
        np.testing.assert_array_equal(pipeline.prepare(tf.constant(images), settings), one_by_one)


def test_with_random_parts_train_keeps_the_original_images(digits_folder):
    splits = pipeline.load(dataclasses.replace(RANDOM_PARTS, image_size=4), digits_folder)
    assert splits.inputs.shapes == (4, 4, 1)
    assert next(iter(splits.train))[0].shape == (8, 8, 1) and next(iter(splits.validation))[0].shape == (4, 4, 1)


def test_large_data_is_shuffled_in_a_window_and_resumes_exactly(digits_folder, monkeypatch):
    splits = pipeline.load(DIGITS, digits_folder)
    monkeypatch.setattr(pipeline, "_MEMORY", 64 * 200)  # bytes: room for 200 of the 1,000 images

    def epochs(first):
        networks.set_seed(0)
        batches = pipeline.training_batches(splits, DIGITS, 100, epochs=3, seed=0, first_step=10 * first)
        return [(x.reshape(100, -1), y) for x, y in batches.as_numpy_iterator()]

    whole = epochs(0)
    stored = {
        image.tobytes(): i
        for i, image in enumerate(np.stack([pipeline.standardize(i, DIGITS) for i, _ in splits.train]))
    }
    assert len(stored) == 1000
    order = [stored[image.tobytes()] for x, _ in whole for image in x]
    orders = [order[i : i + 1000] for i in (0, 1000, 2000)]
    assert all(sorted(epoch) == list(range(1000)) for epoch in orders) and orders[0] != orders[1]
    assert all(max(epoch[i : i + 100]) < i + 300 for epoch in orders for i in range(0, 1000, 100))
    for ours, resumed in zip(whole[20:], epochs(2), strict=True):
        np.testing.assert_array_equal(ours[0], resumed[0])


def test_image_bytes_are_known_or_estimated(digits_folder, rng):
    assert pipeline._input_bytes(pipeline.load(DIGITS, digits_folder)) == 64
    splits = of_images([rng.integers(0, 256, (4 + 2 * (i % 2), 5, 3), np.uint8) for i in range(40)])
    assert pipeline._input_bytes(splits) == 75
