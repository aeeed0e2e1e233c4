import dataclasses

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from tfnas import config, data, training
from tfnas.errors import UserError

DIGITS = config.Data(name="digits", train="train[:1000]", validation="train[1000:]", test="test")


def arrays(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(images), np.array(labels)


def test_digits_are_scikit_learns_and_splits_disjoint(digits_folder):
    splits = data.load(DIGITS, digits_folder)
    assert splits.sizes == {"train": 1000, "validation": 397, "test": 400}
    assert splits.image_shape == (8, 8, 1) and splits.label_names == tuple("0123456789")
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
        ({"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, "data.mean: 1 or 1 numbers expected"),
    ],
)
def test_bad_splits_are_refused(digits_folder, change, message):
    with pytest.raises(UserError, match=message):
        data.load(dataclasses.replace(DIGITS, **change), digits_folder)


def test_unknown_and_absent_data_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match="no TFDS data set 'cifar11'; did you mean 'cifar10'?"):
        data.load(config.Data(name="cifar11"), tmp_path)
    with pytest.raises(UserError, match="'mnist' is not prepared in .*: set --config.data.data_dir or TFDS_DATA_DIR"):
        data.load(config.Data(name="mnist", data_dir=str(tmp_path)), tmp_path)


def test_standardise_by_hand():
    settings = config.Data(mean=(0.5, 0.25), std=(0.25, 0.5))
    image = tf.constant([[[0, 255], [51, 102]]], tf.uint8)
    np.testing.assert_allclose(data.standardise(image, settings), [[[-2, 1.5], [-1.2, 0.3]]], rtol=1e-6)


def test_resize_averages_areas():
    image = tf.constant(np.arange(16).reshape(4, 4, 1), tf.uint8)
    # (0 + 1 + 4 + 5) / 4 = 2.5 and so on; halves go to the even number.
    np.testing.assert_array_equal(data.resize(image, 2)[..., 0], [[2, 4], [10, 12]])


def test_image_size_resizes(digits_folder):
    splits = data.load(dataclasses.replace(DIGITS, image_size=4), digits_folder)
    assert splits.image_shape == (4, 4, 1)
    assert next(iter(splits.train))[0].shape == (4, 4, 1)


def test_a_network_that_cannot_take_the_images_says_what_to_do(digits_folder):
    settings = config.Config(data=dataclasses.replace(DIGITS, image_size=7))
    splits = data.load(settings.data, digits_folder)
    with pytest.raises(UserError, match=r"divisible by 4. Received: \(7, 7, 1\); .* set --config.data.image_size"):
        training.network(settings, splits)


def test_epochs_are_shuffled_complete_and_resume_exactly(digits_folder):
    splits = data.load(DIGITS, digits_folder)

    def epochs(first):
        training.set_seed(0)
        settings = dataclasses.replace(DIGITS, pad_crop=1, flip=True, cutout=3)
        batches = data.training_batches(splits, settings, 100, epochs=3, seed=0, first_epoch=first)
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
    splits = data.load(DIGITS, digits_folder)

    def first_epoch(**options):
        training.set_seed(0)
        settings = dataclasses.replace(DIGITS, **options)
        return next(data.training_batches(splits, settings, 1000, 1, 0).as_numpy_iterator())[0]

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
    splits = data.load(DIGITS, digits_folder)
    with pytest.raises(UserError, match="at most the 1000 training images expected. Received: 1001"):
        data.training_batches(splits, DIGITS, 1001, 1, 0)


def test_real_cifar10(cifar10_folder, tmp_path):
    settings = config.Data(
        name="cifar10", data_dir=str(cifar10_folder), train="train[:100]", validation="train[45000:]", image_size=16
    )
    splits = data.load(settings, tmp_path)
    assert splits.sizes == {"train": 100, "validation": 5000, "test": 10000}
    assert splits.image_shape == (16, 16, 3) and splits.label_names[3] == "cat"
    images, labels = next(iter(data.evaluation_batches(splits.train, settings, 100)))
    assert images.shape == (100, 16, 16, 3) and images.dtype == tf.float32
    assert set(labels.numpy()) == set(range(10))


def test_a_reader_that_stops_early_takes_nothing_from_the_next(digits_folder):
    for _ in range(10):
        splits = data.load(DIGITS, digits_folder)
        next(iter(data.evaluation_batches(splits.validation, DIGITS, 16)))
        assert sum(len(labels) for _, labels in data.evaluation_batches(splits.validation, DIGITS, 500)) == 397
