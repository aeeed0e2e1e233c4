import dataclasses
import inspect

import ml_collections
import numpy as np
import pytest
from conftest import ROOT, load_config
from hypothesis import given
from hypothesis import strategies as st

from tfnas import config, supernets
from tfnas.common.errors import UserError

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_valid(name):
    assert isinstance(load_config(name), config.Config)


def test_a_config_starts_from_another_in_any_folder(tmp_path, monkeypatch):
    """A relative path is taken from the file that names it, wherever the process runs and the file is loaded from."""
    (tmp_path / "base.py").write_text(
        "from tfnas import config\ndef get_config():\n    return config.to_config_dict(config.Config(seed=3))\n"
    )
    (tmp_path / "derived.py").write_text(
        "from tfnas.config import load_file\ndef get_config():\n    made = load_file('base.py', beside=__file__)\n"
        "    made.search.ell2 = 7.0\n    return made\n"
    )
    (tmp_path / "wrong.py").write_text((tmp_path / "derived.py").read_text().replace("ell2", "el2"))
    monkeypatch.chdir(tmp_path.parent)
    for file in (tmp_path / "derived.py", f"{tmp_path.name}/derived.py"):
        made = config.load_file(file)
        assert (made.seed, made.search.ell2) == (3, 7.0)
    with pytest.raises(AttributeError, match='Did you mean "ell2"'):
        config.load_file(tmp_path / "wrong.py")


# epochs, batch, learning rate, schedule, ell2, candidates, test error in % as published: method.md, 5 and 6.
RECIPES = {
    "cifar10_supnet_m": (1800, 128, 0.01, "cosine", 50.0, 1500, "2.20 %"),
    "cifar10_supnet_mi": (1800, 128, 0.01, "cosine", 150.0, 1500, "2.06 %"),
    "cifar100_supnet_mi": (1800, 128, 0.01, "cosine", 2500.0, 5000, "14.28 %"),
    "cifar10_supnet_e": (630, 144, 0.05, "cosine_restarts", 0.2, 1500, "2.73 %"),
    "cifar10_supnet_ei": (630, 144, 0.05, "cosine_restarts", 0.2, 1500, "2.56 %"),
    "imagenet_resnet50": (90, 256, 0.1, "steps", 80.0, 1500, "22.73 %"),
    "imagenet_densenet121": (180, 300, 0.1, "steps", 200.0, 1500, "24.8 / 7.5 %"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_published_runs_have_the_recipes_numbers(name):
    made = load_config(name)
    search, data = made.search, made.data
    epochs, batch_size, learning_rate, schedule, ell2, candidates, error = RECIPES[name]
    assert (search.epochs, search.batch_size, search.learning_rate) == (epochs, batch_size, learning_rate)
    assert (search.schedule, search.ell2, made.sample.num_candidates) == (schedule, ell2, candidates)
    assert (search.momentum, search.nesterov, search.temperature, search.initial_drop) == (0.9, True, 0.2, 0.1)
    assert search.gate_learning_rate == 1 and made.sample.rank_by == "accuracy" and made.retrain.epochs == 0
    if data.name == "imagenet2012":
        assert search.example_multiplier == 1 and data.image_size == 224
        assert (data.pad_crop, data.flip, data.cutout, data.random_resized_crop) == (0, True, 0, True)
        assert search.boundaries == {90: (30.0, 60.0), 180: (90.0, 140.0, 160.0)}[epochs]
    else:
        assert data.name in name.split("_") and search.example_multiplier == 10
        assert (data.pad_crop, data.flip, data.cutout) == (4, True, 16)
    # Only the released ENAS code has one p for all of a concatenated input, and drop-path.
    is_enas = made.supernet.name == "enas"
    assert (search.by_source, made.supernet.drop_path) == ((False, 0.4) if is_enas else (True, 0))
    if schedule == "cosine_restarts":
        restarts = (search.minimum_learning_rate, search.restart_epochs, search.restart_multiplier)
        assert restarts == (1e-4, 10, 2.0)
    text = " ".join((ROOT / "configs" / f"{name}.py").read_text().split())
    for words in (error, "1906.09557", f"--config=configs/{name}.py", "never run in full by this project", "GPU days"):
        assert words in text


def test_round_trip():
    made = config.Config(search=config.Search(epochs=3, ell2=7.0), data=config.Data(mean=(0.1, 0.2), std=(1.0, 2.0)))
    assert config.from_config_dict(config.to_config_dict(made)) == made.check()
    assert made.check().check() == made.check()


def test_what_is_left_out_follows_from_the_mode():
    retrain = config.Retrain(weight_decay=0.003, epochs=15)
    search = config.Config(search=config.Search(epochs=10), retrain=retrain).check().search
    assert (search.published, search.bounds) == (False, {"parameters": 0.5, "multiply_adds": 0.5})
    assert (search.warmup_epochs, search.gated_epochs) == (3, 7)
    assert (search.schedule, search.cosine_epochs) == ("one_cosine", 25)
    assert (search.weight_decay, search.initial_drop) == (0.003, 0.02)
    assert (search.noise, search.streams) == ("batch", "auto")
    search = config.Config(search=config.Search(ell2=7.0, epochs=10), retrain=retrain).check().search
    assert (search.published, search.bounds, search.ell2) == (True, {}, 7)
    assert (search.warmup_epochs, search.gated_epochs) == (0, 10)
    assert (search.schedule, search.weight_decay, search.initial_drop) == ("cosine", 0, 0.1)
    given = {"importance": "gates", "warmup_epochs": 0, "weight_decay": 0.0, "initial_drop": 0.1, "schedule": "cosine"}
    search = config.Config(search=config.Search(multiply_adds=0.3, **given)).check().search
    assert search.bounds == {"multiply_adds": 0.3} and {name: getattr(search, name) for name in given} == given


def test_what_is_left_out_follows_from_trained_weights():
    for supernet in (config.Supernet(weights="of.weights.h5"), config.Supernet(source="a.keras")):
        made = config.Config(supernet=supernet).check()
        assert (made.search.importance, made.search.iterative) == ("curvature", False)
        assert (made.search.epochs, made.search.warmup_epochs, made.search.learning_rate) == (0, 0, 0.03)
        assert (made.retrain.epochs, made.search.cosine_epochs, made.retrain.learning_rate) == (8, 8, 0.03)
        learned = config.Config(supernet=supernet, search=config.Search(importance="gates")).check()
        assert (learned.search.epochs, learned.search.warmup_epochs, learned.search.cosine_epochs) == (3, 0, 11)
        assert made.check() == made
    new = config.Config().check()
    assert (new.search.importance, new.search.iterative) == ("curvature", True)
    assert (new.search.epochs, new.search.warmup_epochs, new.search.learning_rate, new.retrain.epochs) == (
        8,
        3,
        0.1,
        24,
    )
    given = config.Config(
        supernet=supernet, search=config.Search(epochs=6, warmup_epochs=2), retrain=config.Retrain(epochs=0)
    ).check()
    assert (given.search.warmup_epochs, given.search.cosine_epochs, given.retrain.epochs) == (2, 6, 0)


def test_only_importances_that_are_computed_at_once_need_no_epoch():
    retrain = config.Retrain(epochs=0, baselines=("even", "norm"))
    cut = config.Config(
        supernet=config.Supernet(source="a.keras"), search=config.Search(epochs=0), retrain=retrain
    ).check()
    assert (cut.search.importance, cut.search.epochs, cut.search.warmup_epochs, cut.retrain.epochs) == (
        "curvature",
        0,
        0,
        0,
    )
    assert cut.search.shortened(0).check() is None and cut.check() == cut
    for importance in ("gates", "scale", "curvature"):
        with pytest.raises(UserError, match="'search.epochs' must be at least 1; 0 only"):
            config.Config(search=config.Search(epochs=0, importance=importance)).check()
    learned = dataclasses.replace(cut, retrain=config.Retrain(epochs=0, baselines=("norm", "scale")))
    with pytest.raises(UserError, match="'retrain.baselines' must be among even, norm with search.epochs=0"):
        learned.check()


def test_a_search_without_gates_has_no_warm_up_unless_asked():
    for options, warmup in (({}, 3), ({"iterative": False}, 0)):
        search = config.Search(importance="curvature", **options)
        assert config.Config(search=search).check().search.warmup_epochs == warmup
    for importance in ("norm", "even", "mine:scores"):
        assert config.Config(search=config.Search(importance=importance)).check().search.warmup_epochs == 0


def test_bounds_are_shares_or_numbers_any_of_them_together():
    bounds = {"parameters": 2e5, "multiply_adds": 0.3, "latency": 0.5}
    made = config.from_config_dict({"search": bounds, "sample": {**bounds, "parameters": 0.2}})
    assert made.search.bounds == bounds and made.sample.bounds == {**bounds, "parameters": 0.2}


def test_the_weight_decay_is_the_customary_one():
    """SGD of momentum 0.9 on a loss with 5e-4 / 2 ||w||^2, against the decoupled one, where nothing else moves w."""
    coupled, decoupled, velocity = 1.0, 1.0, 0.0
    for _ in range(2000):
        velocity = 0.9 * velocity + 5e-4 * coupled
        coupled -= 0.01 * velocity
        decoupled -= 0.01 * config.Retrain().weight_decay * decoupled
    assert np.log(decoupled) == pytest.approx(np.log(coupled), rel=0.02)


@given(
    epochs=st.integers(2, 300),
    share=st.floats(0.01, 1.5),
    warmup=st.integers(0, 100),
    schedule=st.sampled_from(["one_cosine", "cosine", "cosine_restarts", "steps"]),
)
def test_a_search_in_other_epochs_is_the_same_in_proportion(epochs, share, warmup, schedule):
    boundaries = (0.3 * epochs, 0.9 * epochs) if schedule == "steps" else ()
    search = config.Search(
        epochs=epochs, warmup_epochs=min(warmup, epochs - 1), schedule=schedule, boundaries=boundaries
    )
    made = config.Config(search=search).check()
    number = max(1, round(share * epochs))
    short = dataclasses.replace(made, search=made.search.shortened(number)).check().search
    assert short.epochs == number and short.gated_epochs >= 1
    assert abs(short.warmup_epochs - made.search.warmup_epochs * number / epochs) <= 1
    assert abs(short.cosine_epochs - made.search.cosine_epochs * number / epochs) <= 0.5
    assert short.boundaries == pytest.approx([0.3 * number, 0.9 * number] if boundaries else [])
    assert made.search.shortened(epochs) == made.search


def test_unknown_key_is_refused_by_name():
    with pytest.raises(UserError, match=r"no key 'search.el2'; did you mean 'search.ell2'\?"):
        config.from_config_dict({"search": {"el2": 5.0}})
    with pytest.raises(UserError, match="no key 'serch'"):
        config.from_config_dict({"serch": {}})


def test_a_dotted_key_must_stand_in_its_section():
    with pytest.raises(UserError, match="config: key 'search.ell2' must be 'ell2' in the section 'search'"):
        config.from_config_dict({"search.ell2": 5.0})


def test_locked_dict_refuses_new_keys():
    with pytest.raises(KeyError):
        config.to_config_dict(config.Config())["nonsense"] = 1


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("search", "gate_learning_rate", 5.0, "'search.gate_learning_rate' must be left out: it belongs to the publ"),
        ("search", "prior", "constant", "'search.prior' must be left out"),
        ("search", "group_size", 4, "'search.group_size' must be left out"),
        ("search", "by_source", False, "'search.by_source' must be left out"),
        ("search", "include", "conv*", "'search.include' must be left out"),
        ("search", "parameters", 1.0, "'search.parameters' must be a share of the full .*, or a .* Received: 1.0"),
        ("search", "multiply_adds", -0.5, "'search.multiply_adds' must be a share of the full network's in"),
        ("search", "latency", 3.0, "'search.latency' must be a share of the full network's in"),
        ("search", "noise", "pixel", "'search.noise' must be one of 'batch', 'example'"),
        ("search", "streams", "maybe", "'search.streams' must be one of 'auto', 'yes', 'no'"),
        ("search", "gate_step", 0.0, "greater than 0"),
        ("search", "warmup_epochs", 8, "'search.warmup_epochs' must be at least 0 and less than search.epochs, 8"),
        ("search", "cosine_epochs", 7, "'search.cosine_epochs' must be at least search.epochs, 8"),
        ("search", "weight_decay", -0.5, "'search.weight_decay' must be at least 0"),
        ("search", "ell2", "5", "'search.ell2' must be a number. Received: '5'"),
        ("search", "epochs", 1.5, "'search.epochs' must be a whole number. Received: 1.5"),
        ("search", "epochs", True, "must be a whole number"),
        ("search", "epochs", -2, "at least 1"),
        ("search", "temperature", 0.0, "greater than 0"),
        ("search", "momentum", 1.0, "in \\[0, 1\\)"),
        ("supernet", "name", "resnet9000", "'supernet.name' must be one of 'multi_branch_resnet'"),
        ("supernet", "width", 7, "even number"),
        ("supernet", "width", -2, "at least 0"),
        ("supernet", "num_blocks", -1, "at least 0"),
        ("data", "channels", 3, "left at 0: only data.folder has images of either"),
        ("supernet", "drop_path", 1.0, "a share in"),
        ("supernet", "drop_path", 0.4, "left at 0: 'multi_branch_resnet' does not take it"),
        ("search", "prior", "flops", "'search.prior' must be one of 'uniform', 'constant'"),
        ("search", "guard", "maybe", "'search.guard' must be one of 'stop', 'warn', 'off'"),
        ("search", "schedule", "linear", "one of 'one_cosine', 'cosine', 'cosine_restarts', 'steps'"),
        ("search", "minimum_learning_rate", 1e-4, "left at 0: only 'cosine_restarts' has one"),
        ("search", "restart_epochs", 0, "at least 1"),
        ("search", "restart_multiplier", 0.5, "at least 1"),
        ("search", "restart_multiplier", float("nan"), "at least 1"),
        ("search", "boundaries", (30.0,), "left empty: only the schedule 'steps'"),
        ("sample", "rank_by", "luck", "one of 'loss', 'accuracy'"),
        ("sample", "num_candidates", 0, "at least 1"),
        ("sample", "parameters", 1.0, "'sample.parameters' must be a share of the full .* Received: 1.0"),
        ("sample", "multiply_adds", -0.1, "'sample.multiply_adds' must be a share of the full network's in"),
        ("sample", "latency", 2.0, "'sample.latency' must be a share of the full network's in"),
        ("search", "latency_device", "abacus", "'search.latency_device' must be one of 'tensorflow', 'litert'"),
        ("sample", "channel_multiple", 0, "at least 1"),
        ("tune", "gate_step", (0.1,), "'tune.gate_step' must be left out: it belongs to search.importance='gates'"),
        ("tune", "ell2", (1.0,), "'tune.ell2' must be left out: it belongs to the published search"),
        ("retrain", "epochs", -2, "at least 0"),
        ("retrain", "distill", 1.5, "'retrain.distill' must be a weight in"),
        ("retrain", "distill_temperature", 0.0, "greater than 0"),
        ("evaluate", "threshold", 1.5, "a share in \\[0, 1\\]. Received: 1.5"),
        ("evaluate", "max_drop", -1.5, "a share in \\[-1, 1\\]"),
        ("evaluate", "max_parameters", -0.1, "a share in \\[0, 1\\]"),
        ("data", "train", "", "split expression"),
        ("data", "std", (0.0,), "positive"),
        ("data", "mean", (0.1, 0.2), "equal lengths"),
        ("data", "random_resized_crop", True, "'data.image_size' must be set with data.random_resized_crop"),
        ("data", "source", "my_data.load", "'data.source' must be 'package.module:function'. Received: 'my_data.load'"),
        ("data", "name", "", "'data.name' must be set, or else data.folder or data.source"),
        ("supernet", "source", "my_model", "must be 'package.module:function', or a .keras file. Received"),
        ("supernet", "weights", "checkpoint.h5", "'supernet.weights' must be a .weights.h5 or .keras file. Received"),
        ("export", "name", "a/b", "without '/'"),
        ("export", "formats", ("litert", "tflite"), "one of 'litert', .*. Received: 'tflite'"),
        ("export", "formats", ("onnx,onnx",), "must be different formats"),
        ("export", "formats", "onnx", "must be names separated by commas. Received: 'onnx'"),
        ("export", "formats", ("openvino_int8",), "has no 'openvino_int8': OpenVINO quantizes with NNCF"),
        ("export", "calibration", 0, "at least 1"),
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
        (
            "supernet",
            {"source": "a.keras", "weights": "b.keras"},
            "'supernet.weights' must be left out: a.keras has its",
        ),
        (
            "supernet",
            {"source": "a.keras", "width": 8},
            "takes none of the built-in supernets' numbers: add --config.su",
        ),
        (
            "retrain",
            {"distill": 0.5, "baseline": False},
            "'retrain.distill' must be left at 0 without a teacher, which",
        ),
        ("retrain", {"baselines": ("fixed_drop",)}, "among even, norm, scale, gates without search.ell2. Received"),
        ("retrain", {"baselines": ("curvature",)}, "among even, norm, scale, gates without search.ell2. Received"),
        ("retrain", {"baselines": ("norm", "norm")}, "'retrain.baselines' must be different ones"),
        ("supernet", {"name": "resnet50", "width": 6}, "'supernet.width' must be divisible by 4"),
        (
            "search",
            {"schedule": "cosine_restarts", "minimum_learning_rate": 0.1},
            "less than search.learning_rate, 0.1",
        ),
        ("search", {"schedule": "cosine_restarts", "minimum_learning_rate": -0.1}, "at least 0"),
        ("search", {"ell2": 5.0, "group_size": -2}, "'search.group_size' must be at least 0"),
        ("search", {"ell2": -3.0}, "'search.ell2' must be greater than 0. Received: -3.0"),
        ("search", {"ell2": float("nan")}, "greater than 0"),
        ("search", {"ell2": 5.0, "parameters": 0.5}, "search.ell2=5 and search.parameters exclude each other: add --"),
        ("search", {"ell2": 5.0, "latency": 0.5, "parameters": 0.5}, "search.parameters=0 --config.search.latency=0 f"),
        ("search", {"schedule": "cosine", "cosine_epochs": 9}, "left at 0: only 'one_cosine' has them"),
        ("search", {"ell2": 5.0, "gate_step": 0.1}, "'search.gate_step' must be left out"),
        ("search", {"ell2": 5.0, "importance": "norm"}, "'search.importance' must be 'gates' or left out"),
        ("search", {"importance": "taylor"}, "'search.importance' must be one of 'gates', .*'package.module:function'"),
        (
            "search",
            {"importance": "norm", "noise": "example"},
            "'search.noise' must be left out: it belongs to search.im",
        ),
        ("search", {"importance": "gates", "initial_drop": 1.0}, "strictly in"),
        ("search", {"importance": "norm", "initial_drop": 0.1}, "'search.initial_drop' must be left out"),
        ("search", {"importance": "even", "floor": 0.2}, "'search.floor' must be left out"),
        ("search", {"importance": "scale", "floor": 1.2}, "'search.floor' must be a share in"),
        ("search", {"importance": "scale", "iterative": False}, "'search.iterative' must be left out"),
        ("search", {"importance": "curvature", "curvature_images": 9}, "'search.curvature_images' must be left out"),
        ("search", {"schedule": "steps"}, "'search.boundaries' must be one or more epochs, ascending"),
        ("search", {"schedule": "steps", "boundaries": (60, 30)}, "ascending"),
        ("search", {"schedule": "steps", "boundaries": (0, 30)}, "above 0"),
        ("search", {"schedule": "steps", "boundaries": (30, float("inf"))}, "ascending"),
    ],
)
def test_values_that_do_not_go_together_are_named(section, values, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({section: values})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"latency": 0.5}, "'sample.latency' must be left out: it belongs to a search with bounds"),
        ({"resource": "latency"}, "'sample.resource' must be another one: it belongs to a search with bounds"),
    ],
)
def test_latency_is_no_resource_of_the_published_search_but_is_measured_by_its_device(values, message):
    search = {"ell2": 5.0, "latency_device": "litert"}
    assert config.from_config_dict({"search": search}).check().search.latency_device == "litert"
    with pytest.raises(UserError, match=message):
        config.from_config_dict({"search": search, "sample": values}).check()


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("sample", {"parameters": 0.5, "multiply_adds": 0.5}, "must be one share after a search with ell2"),
        ("sample", {"multiply_adds": 1e6}, "'sample.multiply_adds' must be a share in .* after a search with ell2"),
        ("sample", {"channel_multiple": 8}, "'sample.channel_multiple' must be left at 1 after a search with ell2"),
        ("tune", {"gate_step": (0.1,)}, "'tune.gate_step' must be left out: it belongs to a search with bounds"),
    ],
)
def test_what_does_not_go_with_the_published_search_is_named(section, values, message):
    with pytest.raises(UserError, match=message):
        config.from_config_dict({"search": {"ell2": 5.0}, section: values})


def test_builders_are_all_there_with_the_arguments_named():
    builders = {name: build for name, build in vars(supernets).items() if inspect.isfunction(build)}
    of_the_data = {"num_classes", "input_shape"}
    expected = {name: set(inspect.signature(build).parameters) - of_the_data for name, build in builders.items()}
    assert {name: set(arguments) for name, arguments in config.BUILDERS.items()} == expected
    for name in builders:
        assert config.Supernet(name=name).arguments() == {}
        numbers = {
            number: {"width": 8, "num_blocks": 1}[number]
            for number in ("width", "num_blocks")
            if number in expected[name]
        }
        config.Supernet(name=name, **numbers).check()


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


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "cifar10", "folder": "pets"}, "data.folder 'pets' and data.name 'cifar10' exclude each other"),
        ({"name": "cifar10", "source": "a:b"}, "data.source 'a:b' and data.name 'cifar10' exclude each other"),
        ({"folder": "pets", "source": "a:b"}, "data.folder 'pets' and data.source 'a:b' exclude each other"),
        ({"folder": "pets", "channels": 4}, "'data.channels' must be 1, 3, or 0 to have it found. Received: 4"),
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
