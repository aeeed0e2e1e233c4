"""The config of `tfnas init`, from a folder of pictures to a model that answers, through the command line."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from conftest import ROOT, tfnas_command, tfnas_script

from tfnas import config
from tfnas.config import starting
from tfnas.cutting import subnets
from tfnas.runs import stage_table

NAMES = ("one", "seven", "zero")  # sorted, as the classes are
DIGIT = {"zero": 0, "one": 1, "seven": 7}


@pytest.fixture
def written(tmp_path):
    """The folder that `tfnas init` writes, and the flag that names one's own config in it."""
    starting.write(tmp_path / "search")
    return tmp_path / "search", f"--config={tmp_path / 'search' / 'my_model.py'}"


def write_digits(folder):
    """Scikit-learn's zeros, ones and sevens as PNG files, one folder a class."""
    digits = sklearn.datasets.load_digits()
    for name, digit in DIGIT.items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == digit]):
            pixels = np.round(image * 255 / 16).astype(np.uint8)[..., None]
            (folder / name / f"{i:03d}.png").write_bytes(tf.io.encode_png(pixels).numpy())


def test_init_writes_configs_once(tmp_path):
    folder = tmp_path / "my search"
    done = tfnas_script("init", folder)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["digits.py", "my_model.py"]
    assert f"tfnas run '--config={folder / 'digits.py'}' '--workdir={folder / 'digits'}'" in done.stdout
    for arguments, message in (
        ([folder], f"init: {folder / 'my_model.py'} is already there; name another folder, or remove it"),
        ([], "init: one folder expected, for example: tfnas init search. Received: none"),
        (["a", "b"], "init: one folder expected, for example: tfnas init search. Received: a b"),
    ):
        done = tfnas_script("init", *arguments)
        assert (done.returncode, done.stderr) == (1, f"tfnas: {message}\n")


def test_the_demo_that_init_writes_is_the_demo(written):
    demo = config.load_file(written[0] / "digits.py")
    expected = config.load_file(ROOT / "configs" / "digits.py")
    assert expected.search.latency_device == "litert"  # needs an extra, which this repository's setup installs
    expected.search.latency_device = "tensorflow"
    assert config.from_config_dict(demo) == config.from_config_dict(expected)


def test_a_function_of_ones_own_is_checked(written):
    """With the line changed that is marked for it, and nothing else."""
    file = written[0] / "my_model.py"
    file.write_text(file.read_text().replace("data=FOLDER_OF_IMAGES", "data=FUNCTION"))
    small = [f"--config.{stage}.batch_size=10" for stage in ("search", "sample", "retrain")]
    done = tfnas_command("check", written[1], f"--workdir={written[0] / 'run'}", *small)
    assert done.returncode == 0, done.stderr
    assert "my_model:images: 32x32x3, 2 classes -> train 600 / validation 200" in done.stdout


def test_without_a_folder_nothing_is_trained(tmp_path, written):
    done = tfnas_command("run", written[1], f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1 and not done.stdout
    assert "'data.name' must be set, or else data.folder or data.source. Received: ''" in done.stderr


@pytest.mark.slow
def test_a_folder_and_a_model_of_ones_own_from_end_to_end(tmp_path, written, monkeypatch):
    write_digits(tmp_path / "my digits")
    options = [
        written[1],
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.folder={tmp_path / 'my digits'}",
        "--config.data.image_size=8",
        "--config.data.pad_crop=1",
        "--config.search.epochs=8",
        "--config.search.batch_size=30",
        "--config.sample.num_candidates=20",
        "--config.sample.num_random=5",
        "--config.retrain.epochs=4",
        "--config.retrain.batch_size=30",
    ]
    previewed = tfnas_command("preview", *options)
    assert previewed.returncode == 0, previewed.stderr
    sizes = "8x8x1, 3 classes -> train 377 / validation 81 / test 81"  # 70, 15 and 15 % of 178 + 182 + 179
    assert f"{tmp_path / 'my digits'}: {sizes}; of 377 training images mean=(" in previewed.stdout
    assert not (tmp_path / "run" / "manifest.json").exists()

    # Other settings than the preview's are no matter: it trained nothing.
    done = tfnas_command("run", *options, "--config.data.mean=0.3", "--config.data.std=0.38")
    assert done.returncode == 0, done.stderr
    assert sizes in done.stdout and "supernet my_model:small_cnn: " in done.stdout
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / stage_table.RESULTS).read_text())["rows"]}
    found = rows["found network, retrained"]
    assert found["test"]["accuracy"] > 0.9
    assert found["parameters"] < rows["full network, same total budget"]["parameters"]

    exported = tmp_path / "run" / "export" / "my digits"
    assert (exported / "labels.txt").read_text().split() == list(NAMES)
    served = tf.saved_model.load(str(exported / "1")).signatures["serve_bytes"]
    files = sorted((tmp_path / "my digits").glob("*/*.png"))
    answer = served(image_bytes=tf.constant([file.read_bytes() for file in files]))["classes"][:, 0].numpy().astype(str)
    assert np.mean([label == file.parent.name for label, file in zip(answer, files, strict=True)]) > 0.9

    # architecture.json names the function, and with its file in reach the network can be rebuilt.
    monkeypatch.setattr(sys, "path", [*sys.path, str(written[0])])
    text = (exported / "architecture.json").read_text()
    rebuilt, model = (
        subnets.rebuild(text, source="my_model:small_cnn"),
        keras.models.load_model(exported / "model.keras"),
    )
    assert [w.shape for w in rebuilt.get_weights()] == [w.shape for w in model.get_weights()]

    again = tfnas_command("run", *options, "--config.data.mean=0.3", "--config.data.std=0.38")
    assert again.returncode == 0 and all(f"{stage:9s} up to date" in again.stdout for stage in stage_table.STAGES)
    other = [o for o in options if "data.folder" not in o]
    refused = tfnas_command(
        "search", *other, "--config.data.mean=0.3", "--config.data.std=0.38", f"--config.data.folder={tmp_path}"
    )
    assert refused.returncode == 1 and "holds a search with data.folder=" in refused.stderr


@pytest.mark.slow
def test_a_file_that_is_no_image_ends_a_search_with_one_line_and_may_then_be_mended(tmp_path, written):
    write_digits(tmp_path / "pictures")
    broken = pathlib.Path(tmp_path / "pictures" / "seven" / "004.png")
    content = broken.read_bytes()
    options = [written[1], f"--workdir={tmp_path / 'run'}", f"--config.data.folder={tmp_path / 'pictures'}"]
    options += ["--config.data.image_size=8", "--config.data.train=train", "--config.search.epochs=1"]
    done = tfnas_command("search", *options)
    assert done.returncode == 1 and "overlap" in done.stderr
    options += [
        "--config.data.validation=train[:5]",
        "--config.data.test=train[5:10]",
        "--config.data.train=train[10:]",
    ]
    broken.write_bytes(content[:60])
    done = tfnas_command("search", *options)
    assert done.returncode == 1
    assert done.stderr == f"tfnas: data.folder: {broken} cannot be decoded; expected JPEG or PNG\n"
    broken.write_bytes(content)
    assert tfnas_command("search", *options).returncode == 0
