"""Every row of docs/errors.md quotes a message of the code; errors that the tests of no single module trigger."""

import ast
import collections
import dataclasses
import json
import re
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, load_config
from reports import CONFIG, made

import tfnas
from tfnas import cli, config
from tfnas.common import digests, errors
from tfnas.common.errors import UserError
from tfnas.data import pipeline, sources
from tfnas.data.sources import prepared, returned
from tfnas.graph.channels import Graph
from tfnas.ranking.evaluation_log import Evaluations, _line
from tfnas.reporting import report
from tfnas.runs import stage_table
from tfnas.runs.sampled import Candidate, Epoch, Kind, Ranked
from tfnas.search_space.architecture import MOST_CHANNELS, Architecture
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior
from tfnas.stages import export
from tfnas.tasks import network_inputs
from tfnas.tasks.meanings import CLASSIFICATION
from tfnas.training import distribution, loop, preflight

# Their first argument is a message to a user. RuntimeError and AssertionError report bugs of tfnas.
RAISED = {"UserError", "SearchFailedError", "PreemptedError", "WorkerLostError", "InstallationError", "RequestError"}
RAISED |= {"ValueError", "fail"}
ROW = re.compile(r"\| `(?P<message>.*?)` \| (?P<explanation>[^|]+) \| `(?P<test>[^`|]+)` \|")
MIN_LETTERS = 8  # literal letters of a message; with fewer it only passes on another message


def pattern(node, names):
    """A regular expression for the text of an expression, and the number of its literal letters."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value)), sum(map(str.isalpha, str(node.value)))
    if isinstance(node, ast.JoinedStr):
        parts = [pattern(part, names) for part in node.values]
        return "".join(text for text, _ in parts), sum(letters for _, letters in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        (one, few), (other, more) = pattern(node.left, names), pattern(node.right, names)
        return one + other, few + more
    if isinstance(node, ast.IfExp):
        (one, few), (other, more) = pattern(node.body, names), pattern(node.orelse, names)
        return f"(?:{one}|{other})", min(few, more)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(value, ast.Name) and value.id in names:
        return pattern(names[value.id], {})
    return ".*", 0


def is_text(node):
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def raise_sites():
    """Yields (file:line, pattern) of every message in tfnas/ and pipelines/ that does not only pass on another."""
    for file in sorted([*ROOT.glob("tfnas/**/*.py"), *ROOT.glob("pipelines/*.py")]):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            # Texts that the function assigns to a name once.
            given = [
                (node.targets[0].id, node.value)
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            ]
            counts = collections.Counter(name for name, _ in given)
            names = {name: value for name, value in given if counts[name] == 1 and is_text(value)}
            for node in ast.walk(function):
                called = getattr(node, "func", None)
                if getattr(called, "id", getattr(called, "attr", "")) in RAISED and node.args:
                    text, letters = pattern(node.args[0], names)
                    if letters >= MIN_LETTERS:
                        yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def rows():
    """The (message, explanation, test) of each row of docs/errors.md."""
    lines = (ROOT / "docs" / "errors.md").read_text().splitlines()
    lines = [line for line in lines if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [tuple(match.groups()) for match in found]


def test_every_row_quotes_a_message_of_the_code():
    messages = [message.replace("¦", "|") for message, _, _ in rows()]
    assert len(messages) > 20 and len(set(messages)) == len(messages)
    sites = dict(raise_sites())
    assert len(sites) > 200
    assert [m for m in messages if not any(re.fullmatch(text, m) for text in sites.values())] == []


def test_the_test_of_every_row_exists():
    defined = {
        f"{file.relative_to(ROOT)}::{node.name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {test for _, _, test in rows()} - defined == set()


def test_every_message_is_one_line_that_names_something():
    for message, explanation, _ in rows():
        assert "\n" not in message and len(message) > 15 and len(explanation) > 10, message
        assert not re.search(r"/tmp/|/home/|pytest-|0x[0-9a-f]{6}", message), message


def gated(outputs=1, size=8):
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(image)
    x = keras.layers.Conv2D(4, 3, padding="same", name="a")(x)
    heads = [keras.layers.Dense(2, name=f"head{i}")(keras.layers.GlobalAveragePooling2D()(x)) for i in range(outputs)]
    return tfnas.gate(keras.Model(image, heads), ell2=1.0, num_examples=10)


def raises(words, function, *arguments, kind=UserError):
    """Checks that the call raises `kind` with a message of one line that contains the words."""
    with pytest.raises(kind) as raised:
        function(*arguments)
    message = str(raised.value)
    assert words in message and "\n" not in message, message


def test_files_of_architectures_and_posteriors_that_hold_too_much_or_too_little():
    text = Architecture({"a": np.array([True, False])}).to_json()
    raises("architecture: altered since it was written: digest '", Architecture.from_json, text.replace("[0]", "[1]"))
    raises("('a': index 7 is out of bounds", Architecture.from_json, text.replace("[0]", "[7]"))
    many = json.loads(text)
    many["layers"] |= {"b": {"channels": MOST_CHANNELS, "kept": []}}
    raises("at most 16,777,216 channels expected. Received: 16,777,218", Architecture.from_json, json.dumps(many))
    deep = "[" * 100_000
    raises("architecture: not the JSON of an Architecture (nested too deeply)", Architecture.from_json, deep)
    raises("key 'format' is there twice", Architecture.from_json, text.replace("{", '{"format": "", ', 1))

    layers = Posterior((LayerGates("a", (2,), (0.5,), 9), LayerGates("b", (2,), (0.5,), 9))).to_json()
    raises("2 layers with names of their own expected. Received: 1", Posterior.from_json, layers.replace('"b"', '"a"'))
    value = json.loads(layers)
    value["layers"][0]["group_sizes"] = [MOST_CHANNELS]
    raises("posterior: not the JSON of a Posterior (at most 16,777,216", Posterior.from_json, json.dumps(value))
    value["layers"][0]["group_sizes"] = [1, 1]
    raises("posterior: not the JSON of a Posterior (LayerGates 'a': one drop", Posterior.from_json, json.dumps(value))


def test_the_probability_of_another_networks_architecture():
    made_of = Posterior((LayerGates("a", (2,), (0.5,), 9),))
    raises(
        "log_prob: the layers of this posterior expected. Received: others; 'a' is only in the posterior",
        made_of.log_prob,
        Architecture({"b": np.ones(2, bool)}),
    )
    raises(
        "log_prob: 'a': a mask of 2 input channels expected", made_of.log_prob, Architecture({"a": np.ones(3, bool)})
    )


def test_a_section_that_is_a_number():
    raises("config: 'data' must be a section of keys. Received: 3", config.from_config_dict, {"data": 3})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('not\\nyet')", "ValueError: not yet (FILE, line 2)"),
        ("raise RuntimeError('not\\nyet')", "RuntimeError: not yet (FILE, line 2)"),
        ("3 +", "SyntaxError: invalid syntax (broken.py, line 2)"),
    ],
)
def test_a_config_file_that_fails_is_told_with_the_line(tmp_path, capsys, body, words):
    file = tmp_path / "broken.py"
    file.write_text(f"def get_config():\n    {body}\n")
    # ml_collections loads it in a way that Python deprecates, of which a user is not told.
    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cli.parse_flags(["tfnas", "search", f"--config={file}", "--workdir=w"])
    words = words.replace("FILE", str(file))
    assert capsys.readouterr().err == f"tfnas: --config: the file could not be read: {words}\n"


def graph(layers, shape=(8, 8, 3)):
    x = keras.Input(shape)
    return Graph(keras.Model(x, layers(x)))


def test_layers_whose_channels_cannot_be_followed():
    first = keras.layers.MaxPooling2D(data_format="channels_first", name="c")
    raises("layer 'c': data_format must be 'channels_last'. Received: 'channels_first'", graph, first)


def test_an_evaluation_that_is_whole_but_none(tmp_path):
    file = tmp_path / "e.jsonl"
    with Evaluations(file, "run") as kept:
        kept.append("a" * 64, 0, {"loss": np.ones(3, np.float32)})
    head, line = file.read_text().splitlines()
    record = json.loads(line.partition(" ")[2])
    for wrong in (
        {"digest": "no digest"},
        {"figures": {"loss": "AAAA"}},
        {"figures": {"loss": "no base64"}},
        {"figures": {"a": "4A=="}},
    ):
        file.write_text(f"{head}\n{_line({**record, **wrong})}")
        raises(
            "e.jsonl: line 2 was altered, delete the file to rank again (",
            lambda: Evaluations(file, "run").__enter__(),
        )


def test_a_loss_that_is_not_finite_is_told_by_check():
    step = types.SimpleNamespace(strategy=tf.distribute.get_strategy(), totals=lambda: (0.0,))

    class Step:
        strategy = step.strategy
        totals = staticmethod(step.totals)

        def __call__(self, batches, totals, number):
            return (float("nan"),)

    raises("check: expected a finite loss in the first ", preflight.measure, Step(), lambda *_: _batches())


def _batches():
    return tf.data.Dataset.from_tensors(np.zeros(1, np.float32)).repeat()


def test_steps_that_cannot_be_taken(monkeypatch):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    several = types.SimpleNamespace(num_replicas_in_sync=2)
    with monkeypatch.context() as patched:
        patched.setattr(tf.distribute, "get_strategy", lambda: several)
        raises("training.jit_compile: must be false", loop.Step, model, 1, True)

    def full(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor of shape [1,2]\nmore")

    step = loop.Step(model)
    step._step = full
    words = "a batch does not fit into memory (OOM when allocating tensor of shape [1,2]): try --config.training"
    raises(words, step, iter(()), step.totals(), 0)


def test_processes_that_see_different_folders(monkeypatch):
    class Two:
        num_replicas_in_sync = 2

        def run(self, function):
            return function()

        def reduce(self, how, value, axis):
            return value + 4.0  # of the other process

    monkeypatch.setattr(distribution, "cluster", lambda: types.SimpleNamespace(count=2, index=0))
    monkeypatch.setattr(tf.distribute, "get_strategy", Two)
    raises(
        "process 0 of 2 resumes from step 8, and others from another (on average 6): --workdir must be one folder",
        distribution.agree,
        8,
    )


def _data_set(monkeypatch, shape, keys):
    import tensorflow_datasets as tfds

    features = {"image": types.SimpleNamespace(shape=shape), "label": tfds.features.ClassLabel(num_classes=2)}
    info = types.SimpleNamespace(features=features, supervised_keys=keys, splits={})
    monkeypatch.setattr(prepared, "_builder", lambda *_: types.SimpleNamespace(info=info))


def test_data_sets_that_are_not_of_images_and_labels(monkeypatch, tmp_path):
    data = config.Data(name="cifar10")
    _data_set(monkeypatch, (32, 32, 3), None)
    words = "Received: 'cifar10', with no pairs"
    raises(words, sources.load, data, tmp_path)
    _data_set(monkeypatch, (8, 32, 32, 3), ("image", "label"))
    raises("data.name: 'cifar10' has images of shape (8, 32, 32, 3);", sources.load, data, tmp_path)


def test_functions_that_give_batches_of_unknown_shape_or_fail_on_the_way():
    data = config.Data(source="my_data:load")
    unknown = tf.data.Dataset.from_generator(
        lambda: iter([(np.zeros((2, 8, 8, 3), np.uint8), 0)]), output_types=(tf.uint8, tf.int64)
    )
    words = "data.source: train of 'my_data:load' must yield images (height, width, channels). Received"
    inputs = network_inputs.one((8, 8, 3))
    raises(words, returned._survey, unknown, "train", inputs, data, CLASSIFICATION)
    failing = tf.data.Dataset.from_tensors((np.zeros((8, 8, 3), np.uint8), 0)).map(
        lambda image, label: (tf.io.decode_png(tf.io.read_file("nowhere.png")), label)
    )
    raises(
        "data.source: train of 'my_data:load' cannot be read: ",
        returned._survey,
        failing,
        "train",
        inputs,
        data,
        CLASSIFICATION,
    )


def test_exports_that_do_not_go_together(tmp_path, monkeypatch):
    work = made(tmp_path)
    manifest = work.manifest()

    def holding(name, value):
        stage = next(stage for stage, spec in stage_table.STAGES.items() if name in spec.outputs)
        manifest.stages[stage].outputs[name] = digests.of_file(work.write_json(name, value))
        work.write_sealed(stage_table.MANIFEST, manifest)

    says = "a test accuracy of 80.00%, at least 90.00% asked"
    check = {"setting": "evaluate.threshold", "value": 0.8, "limit": 0.9, "passed": False, "says": says}
    holding(stage_table.EVALUATION, {"blessed": False, "checks": [check]})
    raises(
        f"export: the network is not what was asked for: {says}. Search again, or ask for less by --config.evaluate",
        export._export,
        CONFIG,
        work,
    )
    splits = pipeline.Splits(None, None, None, {}, network_inputs.one((8, 8, 1)), tuple("0123456789"))
    network = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    words = (
        "subnet.keras: inputs of shapes {'image': (None, 8, 8, 1)} and outputs of shapes [(None, 10)] expected, as the "
        "data has. Received: {'image': (None, 9, 9, 1)}"
    )
    raises(words, export._check_fits, network, splits, tmp_path / "subnet.keras")
    many = load_config("digits").__class__(export=config.Export(uncertainty=3), sample=config.Sample())
    raises(
        "export.uncertainty: at most the 1 candidates that may win. Received: 3",
        export._ensemble,
        many,
        work,
        splits,
    )


def test_files_of_several_runs_are_not_reported_as_one(tmp_path):
    work = made(tmp_path)
    read = work.read_json(stage_table.RANKING, "report", Ranked)
    learned = Posterior.from_json((work.path / stage_table.POSTERIOR).read_bytes())
    mine = learned.sample(1, seed=0)[0]
    history = work.read_lines(stage_table.HISTORY, "report", Epoch)
    candidates = work.read_lines(stage_table.CANDIDATES, "report", Candidate)
    of_another = Architecture({"x": np.ones(2, bool)})
    raises(
        "report: the layers of architecture.json are not those of posterior.json: they are of several runs",
        report._check_one_run,
        learned,
        of_another,
        history,
        read,
        candidates,
    )
    raises(
        "report: the layers of search/history.jsonl are not those of",
        report._check_one_run,
        learned,
        mine,
        [dataclasses.replace(history[0], drop_probability={"x": (0.5,)}), *history[1:]],
        read,
        candidates,
    )
    raises(
        "report: sample/candidates.jsonl has no candidate of the kind 'posterior': they",
        report._check_one_run,
        learned,
        mine,
        history,
        read,
        [c for c in candidates if c.kind != Kind.POSTERIOR],
    )


def test_manifests_that_cannot_be(tmp_path):
    work = made(tmp_path)
    manifest = work.manifest()
    manifest.stages["search"].outputs["../../x"] = "0" * 64
    work.write_sealed(stage_table.MANIFEST, manifest)
    raises("'search' is to have written '../../x', outside of this folder: delete the file", work.manifest)
    (work.path / stage_table.MANIFEST).unlink()
    (work.path / stage_table.MANIFEST).mkdir()
    raises(
        "manifest.json: truncated or altered: delete it, and 'tfnas run' makes it again from the others (Is a",
        work.manifest,
    )


def test_a_stop_by_the_keyboard_and_a_full_disk_end_in_one_line(capsys):
    with pytest.raises(SystemExit), errors.exit_on_error("runs/digits"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("tfnas: stopped")
    with pytest.raises(SystemExit), errors.exit_on_error("runs/digits"):
        raise OSError(28, "No space left on device", "runs/digits/posterior.json")
    said = "tfnas: runs/digits/posterior.json: No space left on device; "
    assert capsys.readouterr().err.startswith(said)


def test_a_confusion_of_other_classes_is_not_exported(tmp_path, monkeypatch):
    work = made(tmp_path)
    (work.path / stage_table.CUT_ARCHITECTURE).write_text(Architecture({"a": np.ones(2, bool)}).to_json())
    splits = types.SimpleNamespace(num_outputs=10, output_names=())
    monkeypatch.setattr(export.sources, "load", lambda *_: None)
    monkeypatch.setattr(export.pipeline, "from_source", lambda *_: splits)
    monkeypatch.setattr(export.saving, "load_model", lambda *_: None)
    monkeypatch.setattr(export, "_check_fits", lambda *_: None)
    words = "retrain/results.json: a confusion of 10 classes expected. Received: 2; run retrain again"
    raises(words, export._export, CONFIG, work)


def test_a_constant_where_the_size_is_not_known():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="ones", name="stem")(image)
    x = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="ones", name="a")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 1, name="other")(image)])
    logits = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    supernet = tfnas.gate(keras.Model(image, logits), ell2=1.0, num_examples=10)
    masks = {"a": np.zeros(4, bool), "b": np.ones(4, bool)}
    words = "subnet: a dropped operation leaves a constant where the spatial size is not known: give the model's input"
    raises(words, tfnas.subnet, supernet, Architecture(masks))


def test_requests_that_name_no_input_or_a_label():
    from tfnas.serving import servable

    spec = tf.TensorSpec((None, 2), tf.float32)
    signature = types.SimpleNamespace(structured_input_signature=((), {"a": spec, "b": spec}))
    model = servable.Model.__new__(servable.Model)
    model._loaded = types.SimpleNamespace(signatures={servable.DEFAULT_SIGNATURE: signature})
    words = "inputs by name expected: 'a', 'b'. Received: values without names"
    raises(words, lambda: model.predict("", [[1, 2]], [], servable.from_json), kind=servable.RequestError)
    labeled = types.SimpleNamespace(version_label="stable")
    words = "version_label: none is served, a version expected. Received: stable"
    raises(words, servable.Models([]).wanted, labeled, kind=servable.RequestError)


def test_words_of_tensorflow_come_without_its_names_for_places():
    with pytest.raises(tf.errors.OpError) as raised:
        list(tf.data.Dataset.from_tensors("nowhere.png").map(tf.io.read_file))
    assert "{{" in str(raised.value)
    words = errors.plain_message(raised.value)
    assert "nowhere.png; No such file or directory" in words and not re.search(r"[{}\n]|\[\[|\[Op", words)
