import dataclasses

import matplotlib.image
import numpy as np
import pytest
import sklearn.datasets
from conftest import load_config

from tfnas import config
from tfnas.common.errors import UserError
from tfnas.stages import preview

DIGITS = load_config("digits")
PUBLISHED = config.Search(ell2=60.0)  # whose supernet is not previewed


def test_preview_draws_and_measures(tmp_path, capsys):
    preview.run(dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, pad_crop=2)), tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        "digits: 8x8x1, 10 classes -> train 1,000 / validation 397 / test 400; of 1,000 training"
    )
    mean, std = (float(part.partition("(")[2].partition(",")[0]) for part in printed[0].split("mean")[1].split("std"))
    # Scikit-learn's own numbers, of all 1,797 images; ours are a random 1,000 of them.
    pixels = sklearn.datasets.load_digits().images / 16
    assert mean == pytest.approx(pixels.mean(), abs=0.005) and std == pytest.approx(pixels.std(), abs=0.005)
    assert printed[1] == f"preview   {tmp_path / 'preview.png'}"
    assert printed[3].startswith("Preview of 'multi_branch_resnet', without training. Smallest network: ")
    table = printed.index(next(line for line in printed if line.startswith("multiply-adds")))
    assert [line.split()[0] for line in printed[table + 1 : table + 5]] == ["100", "75", "50", "25"]
    assert "loss" not in printed[table]  # of weights that are not trained
    picture = matplotlib.image.imread(tmp_path / "preview.png")[..., :3]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100  # digits have 17 grays, and letters some
    height = len(picture)
    for half in (picture[: height // 2], picture[height // 2 :]):
        assert (half < 0.1).all(-1).mean() > 0.1  # their black background, in both halves
    # Nothing is claimed, so the settings may be changed in the same folder.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preview.png", "tensorflow_datasets"]


def test_preview_never_reads_the_test_split(tmp_path):
    published = dataclasses.replace(DIGITS, search=PUBLISHED)
    preview.run(published, tmp_path)
    (file,) = (tmp_path / "tensorflow_datasets").rglob("digits-test*")
    file.write_bytes(b"destroyed")
    preview.run(published, tmp_path)


def test_few_color_images_and_a_users_mistake(cifar10_folder, tmp_path, capsys):
    chosen = config.Data(
        name="cifar10", data_dir=str(cifar10_folder), train="train[:5]", validation="train[5:8]", image_size=24
    )
    chosen = dataclasses.replace(chosen, random_resized_crop=True, flip=True)
    preview.run(config.Config(data=chosen, search=PUBLISHED), tmp_path)
    assert (
        "24x24x3, 10 classes -> train 5 / validation 3 / test 10,000; of 5 training images" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="overlap"):
        preview.run(config.Config(data=dataclasses.replace(chosen, validation="train[:3]")), tmp_path)
