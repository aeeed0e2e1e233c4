import dataclasses

import ml_collections
import pytest
from conftest import ROOT, load_config

from tfnas import config
from tfnas.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_every_config_file_is_valid(name):
    assert isinstance(load_config(name), config.Config)


def test_round_trip():
    made = config.Config(search=config.Search(epochs=3, ell2=7.0), data=config.Data(mean=(0.1, 0.2), std=(1.0, 2.0)))
    assert config.from_config_dict(config.to_config_dict(made)) == made


def test_unknown_key_is_refused_by_name():
    with pytest.raises(UserError, match=r"no key 'search.el2'; did you mean 'search.ell2'\?"):
        config.from_config_dict({"search": {"el2": 5.0}})
    with pytest.raises(UserError, match="no key 'serch'"):
        config.from_config_dict({"serch": {}})


def test_locked_dict_refuses_new_keys():
    with pytest.raises(KeyError):
        config.to_config_dict(config.Config())["nonsense"] = 1


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("search", "ell2", 0.0, "'search.ell2' must be greater than 0. Received: 0.0"),
        ("search", "ell2", -3.0, "greater than 0"),
        ("search", "ell2", float("nan"), "greater than 0"),
        ("search", "ell2", "5", "'search.ell2' must be a number. Received: '5'"),
        ("search", "epochs", 1.5, "'search.epochs' must be a whole number. Received: 1.5"),
        ("search", "epochs", True, "must be a whole number"),
        ("search", "epochs", 0, "at least 1"),
        ("search", "temperature", 0.0, "greater than 0"),
        ("search", "initial_drop", 1.0, "strictly in"),
        ("search", "momentum", 1.0, "in \\[0, 1\\)"),
        ("supernet", "name", "resnet9000", "'supernet.name' must be one of 'multi_branch_resnet'"),
        ("supernet", "width", 7, "even number"),
        ("sample", "rank_by", "luck", "one of 'loss', 'accuracy'"),
        ("sample", "num_candidates", 0, "at least 1"),
        ("retrain", "epochs", -1, "at least 0"),
        ("data", "train", "", "split expression"),
        ("data", "std", (0.0,), "positive"),
        ("data", "mean", (0.1, 0.2), "equal lengths"),
        ("data", "random_resized_crop", True, "'data.image_size' must be set with data.random_resized_crop"),
        ("data", "source", "my_data.load", "'data.source' must be 'package.module:function'. Received: 'my_data.load'"),
        ("data", "name", "", "'data.name' must be set, or else data.folder or data.source"),
        ("supernet", "source", "my_model", "'supernet.source' must be 'package.module:function'"),
        ("export", "name", "a/b", "without '/'"),
    ],
)
def test_bad_values_are_named(section, key, value, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({section: {key: value}})


def test_parse_value_reads_each_type():
    assert config.parse_value("search.epochs", "12") == 12
    assert config.parse_value("search.ell2", "2.5") == 2.5
    assert config.parse_value("data.flip", "true") is True
    assert config.parse_value("data.mean", "(0.1, 0.2)") == (0.1, 0.2)
    with pytest.raises(UserError, match="'search.epochs' must be a whole number. Received: 'many'"):
        config.parse_value("search.epochs", "many")


def test_every_key_is_known_and_settings_are_frozen():
    assert "search.ell2" in config.known_keys() and "seed" in config.known_keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Config().seed = 3
    assert isinstance(config.to_config_dict(config.Config()), ml_collections.ConfigDict)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "cifar10", "folder": "pets"}, "data.folder 'pets' and data.name 'cifar10' exclude each other"),
        ({"name": "cifar10", "source": "a:b"}, "data.source 'a:b' and data.name 'cifar10' exclude each other"),
        ({"folder": "pets", "source": "a:b"}, "data.folder 'pets' and data.source 'a:b' exclude each other"),
        ({"folder": "pets", "data_dir": "D"}, "'data.data_dir' says nothing about data.folder 'pets': leave it out"),
        ({"source": "a:b", "data_dir": "D"}, "'data.data_dir' says nothing about data.source 'a:b'"),
        ({"source": "a:b", "train": "train[:5]"}, r"'data.train' says nothing about .* Received: 'train\[:5\]'"),
    ],
)
def test_where_images_come_from_is_said_once(values, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({"data": values})


@pytest.mark.parametrize(
    "values, title, short",
    [
        ({}, "digits", "digits"),
        ({"name": "imagenet_resized/32x32"}, "imagenet_resized/32x32", "imagenet_resized_32x32"),
        ({"folder": "some/where/pets/"}, "some/where/pets/", "pets"),
        ({"folder": "/"}, "/", "images"),
        ({"source": "my.flowers:load"}, "my.flowers:load", "flowers"),
    ],
)
def test_a_data_set_is_called(values, title, short):
    data = config.from_config_dict({"data": values}).data
    assert (data.title, data.short_name) == (title, short)
