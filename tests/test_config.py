import dataclasses
import inspect

import ml_collections
import pytest
from conftest import ROOT, load_config

from tfnas import config, supernets
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
        ("supernet", "width", -2, "at least 0"),
        ("supernet", "num_blocks", -1, "at least 0"),
        ("search", "schedule", "linear", "one of 'cosine', 'cosine_restarts', 'steps'"),
        ("search", "minimum_learning_rate", 1e-4, "left at 0: only 'cosine_restarts' has one"),
        ("search", "restart_epochs", 0, "at least 1"),
        ("search", "restart_multiplier", 0.5, "at least 1"),
        ("search", "restart_multiplier", float("nan"), "at least 1"),
        ("search", "boundaries", (30.0,), "left empty: only the schedule 'steps'"),
        ("sample", "rank_by", "luck", "one of 'loss', 'accuracy'"),
        ("sample", "num_candidates", 0, "at least 1"),
        ("retrain", "epochs", -1, "at least 0"),
        ("data", "train", "", "split expression"),
        ("data", "std", (0.0,), "positive"),
        ("data", "mean", (0.1, 0.2), "equal lengths"),
        ("export", "name", "a/b", "without '/'"),
    ],
)
def test_bad_values_are_named(section, key, value, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({section: {key: value}})


@pytest.mark.parametrize(
    "section, values, message",
    [
        (
            "supernet",
            {"name": "enas", "stem_width": 16},
            "stem_width' must be left at 0: 'enas' does not",
        ),
        ("supernet", {"name": "resnet50", "width": 6}, "'supernet.width' must be divisible by 4"),
        (
            "search",
            {"schedule": "cosine_restarts", "minimum_learning_rate": 0.01},
            "less than search.learning_rate, 0.01",
        ),
        ("search", {"schedule": "cosine_restarts", "minimum_learning_rate": -0.1}, "at least 0"),
        ("search", {"schedule": "steps"}, "'search.boundaries' must be one or more epochs, ascending"),
        ("search", {"schedule": "steps", "boundaries": (60, 30)}, "ascending"),
        ("search", {"schedule": "steps", "boundaries": (0, 30)}, "above 0"),
        ("search", {"schedule": "steps", "boundaries": (30, float("inf"))}, "ascending"),
    ],
)
def test_values_that_do_not_go_together_are_named(section, values, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({section: values})


def test_builders_are_all_there_with_the_arguments_named():
    builders = {name: build for name, build in vars(supernets).items() if inspect.isfunction(build)}
    of_the_data = {"num_classes", "input_shape"}
    expected = {name: set(inspect.signature(build).parameters) - of_the_data for name, build in builders.items()}
    assert {name: set(arguments) for name, arguments in config.BUILDERS.items()} == expected
    for name in builders:
        assert config.Supernet(name=name).arguments() == {}
        config.Supernet(name=name, width=8, num_blocks=1).check()


def test_parse_value_reads_each_type():
    assert config.parse_value("search.epochs", "12") == 12
    assert config.parse_value("search.ell2", "2.5") == 2.5
    assert config.parse_value("data.flip", "true") is True
    assert config.parse_value("search.boundaries", "30,60") == (30.0, 60.0)
    assert config.parse_value("data.mean", "(0.1, 0.2)") == (0.1, 0.2)
    with pytest.raises(UserError, match="'search.epochs' must be a whole number. Received: 'many'"):
        config.parse_value("search.epochs", "many")


def test_every_key_is_known_and_settings_are_frozen():
    assert "search.ell2" in config.known_keys() and "seed" in config.known_keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Config().seed = 3
    assert isinstance(config.to_config_dict(config.Config()), ml_collections.ConfigDict)
