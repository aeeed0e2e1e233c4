import collections
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config

from tfnas import checks, config, data, loop
from tfnas.errors import UserError
from tfnas.stages import check
from tfnas.workdir import Workdir

usage = collections.namedtuple("usage", "total used free")


@pytest.fixture
def small():
    settings = config.to_dict(load_config("digits"))
    settings["supernet"] |= {"width": 4, "stem_width": 4}
    return config.from_config_dict(settings)


@pytest.mark.slow
def test_check_says_what_a_run_needs_and_leaves_the_folder_as_it_was(small, tmp_path, capsys, monkeypatch):
    read = []
    monkeypatch.setattr(loop.Step, "__call__", _counted(loop.Step.__call__, read))
    found = check.run(small, tmp_path)
    assert found["sizes"]["train"] == 1000 and found["image_shape"] == [8, 8, 1] and len(found["classes"]) == 10
    said = capsys.readouterr().out
    for line in ("devices   1 x CPU", "train 1,000 / validation 397", "gated layers", "writable", "in all"):
        assert line in said
    assert len(re.findall(r"a batch of 50: [\d,]+ ms, [\d,]+ images/s", said)) == 2 and len(read) >= 6
    assert "30 epochs of 20 steps" in said
    assert [path.name for path in tmp_path.iterdir()] == ["tensorflow_datasets"]


def _counted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


def test_too_little_room_is_told_before_the_first_step(tmp_path, monkeypatch):
    import keras

    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(100, use_bias=False)])
    work = Workdir(tmp_path)
    # 1,000 weights and as many of momentum, 4 bytes each; three checkpoints, one in writing, three models.
    assert checks.room(work, model, 3)[0] == 2 * 1000 * 4 * 7
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * 1000 * 4 * 7 - 1))
    with pytest.raises(UserError, match=r"workdir .*: 0 MB free expected, for 3 checkpoints and the models"):
        checks.room(work, model, 3)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_told(split, label):
    def of(labels):
        return tf.data.Dataset.from_tensor_slices((np.zeros((3, 4, 4, 1), np.uint8), labels))

    parts = {name: of([0, 2, label if name == split else 1]) for name in ("train", "validation", "test")}
    splits = data.Splits(**parts, sizes={"train": 3}, image_shape=(4, 4, 1), label_names=("a", "b", "c"))
    with pytest.raises(UserError, match=f"{split}: labels from 0 to 2 expected, one per class. Received: {label}"):
        checks.examples(splits)
