"""A `.keras` file is data: whatever it holds, no code in it or named by it is run."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT
from fuzzing import damaged, fuzz
from hypothesis import given

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting import subnets
from tfnas.gating import saving
from tfnas.gating.supernet import Supernet


def network(*more):
    image = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(2, 3, name="stem")(image)
    x = keras.layers.Conv2D(2, 3, name="conv")(x)
    for layer in more:
        x = layer(x)
    return keras.Model(image, keras.layers.Dense(3, name="end")(keras.layers.GlobalMaxPooling2D(name="pool")(x)))


@pytest.fixture
def plain(tmp_path):
    network().save(tmp_path / "plain.keras")
    return tmp_path / "plain.keras"


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The file with its config.json changed and its other members as they were."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    described = json.loads(members["config.json"])
    change(described, members)
    members["config.json"] = json.dumps(described).encode()
    target = path.with_name("changed.keras")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def refused(path, kind=keras.Model, message="cannot be loaded as a Keras model"):
    with pytest.raises(UserError) as caught:
        saving.load_model(path, kind)
    told = str(caught.value)
    assert told.startswith(f"{path}: {message}") and told.isprintable() and len(told) < 700


@pytest.mark.parametrize("options", [{"ell2": 1}, {"parameters": 0.9, "steps": 5}])
def test_a_search_is_taken_up_from_python_in_a_fresh_process(tmp_path, options):
    supernet = tfnas.gate(network(), num_examples=10, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=loss)
    supernet.save(tmp_path / "supernet.keras")
    program = (
        "import sys, tfnas\n"
        "found = tfnas.load(sys.argv[1])\n"
        "print(type(found).__name__, type(found.optimizer).__name__, found.posterior().entropy())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "supernet.keras")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{type(supernet).__name__} GatedOptimizer {supernet.posterior().entropy()}\n"
    network().save(tmp_path / "plain.keras")
    with pytest.raises(UserError, match="plain.keras: .*Supernet"):
        tfnas.load(tmp_path / "plain.keras")
    with pytest.raises(UserError, match="nowhere.keras"):
        tfnas.load(str(tmp_path / "nowhere.keras"))


def test_what_was_saved_is_loaded(plain, rng):
    x = rng.normal(size=(2, 6, 6, 1)).astype("float32")
    model = network()
    model.save(plain)
    np.testing.assert_array_equal(saving.load_model(plain, keras.Model)(x), model(x))
    supernet = tfnas.gate(network(), ell2=1, num_examples=10)
    supernet.save(plain)
    assert saving.load(plain).architecture() == supernet.architecture()


def test_a_model_of_another_kind_is_refused(plain):
    refused(plain, Supernet, "a Supernet expected. Received: Functional")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.keras")


def test_code_in_a_file_is_not_run(plain, tmp_path):
    """A Lambda's bytecode would make a file when it is called; loading calls it to infer its shape."""
    made = tmp_path / "made"
    code = f"lambda x: (open({str(made)!r}, 'w').close(), x)[1]"
    network(keras.layers.Lambda(eval(code))).save(plain)
    made.unlink()
    keras.models.load_model(plain, safe_mode=False)
    assert made.exists()  # the file is what it is meant to be
    made.unlink()
    refused(plain)
    assert not made.exists()


@pytest.mark.parametrize("registered_name", [None, "Payload", "mine>Payload"])
def test_a_module_named_in_a_file_is_not_imported(plain, tmp_path, monkeypatch, registered_name):
    made = tmp_path / "made"
    (tmp_path / "payload_of_a_file.py").write_text(f"open({str(made)!r}, 'w').close()\nPayload = dict\n")
    monkeypatch.syspath_prepend(tmp_path)

    def name_it(described, members):
        layer = described["config"]["layers"][1]
        layer |= {"module": "payload_of_a_file", "class_name": "Payload", "registered_name": registered_name}

    refused(rewritten(plain, name_it))
    assert not made.exists()


@pytest.mark.parametrize("module, name", [("keras.config", "enable_unsafe_deserialization"), ("os", "system")])
def test_a_function_named_in_a_file_is_not_called(plain, module, name):
    def name_it(described, members):
        function = {"class_name": "function", "config": name, "module": module, "registered_name": name}
        layer = {"class_name": "Lambda", "module": "keras.layers", "registered_name": None}
        layer["config"] = {"name": "stem", "function": function, "arguments": {}}
        described["config"]["layers"][1] |= layer

    refused(rewritten(plain, name_it))


def test_what_keras_does_not_write_is_not_unpacked(plain):
    refused(rewritten(plain, lambda described, members: members.update({"assets/../../x": b""})))
    refused(rewritten(plain, lambda described, members: members.pop("metadata.json")))
    refused(rewritten(plain, lambda described, members: None, zipfile.ZIP_DEFLATED))


def test_an_architecture_file_names_no_code_that_is_run(tmp_path, monkeypatch):
    made = tmp_path / "made"
    (tmp_path / "payload_of_json.py").write_text(f"open({str(made)!r}, 'w').close()\ndef build(**more):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    supernet = tfnas.gate(network(), ell2=1, num_examples=10)

    def described(builder, **arguments):
        return subnets.describe(supernet.architecture(), supernet.graph, builder, **arguments)

    for builder in ("payload_of_json:build", "densenet", "__loader__", "os:system"):
        with pytest.raises(UserError, match=f"architecture: names the supernet '{builder}', one of multi_branch"):
            subnets.rebuild(described(builder, width=4))
    with pytest.raises(UserError, match="or my_model:build$"):
        subnets.rebuild(described("payload_of_json:build"), source="my_model:build")
    assert not made.exists()
    with pytest.raises(UserError, match="architecture: 'resnet50' failed: TypeError"):
        subnets.rebuild(described("resnet50", depth=4))


def test_damaged_files(plain):
    valid = plain.read_bytes()
    expected = network().count_params()

    @fuzz(80)
    @given(damaged(valid))
    def check(data):
        plain.write_bytes(data)
        try:
            model = saving.load_model(plain, keras.Model)
        except UserError as error:
            assert str(error).startswith(f"{plain}: ") and str(error).isprintable()
        else:
            assert model.count_params() == expected

    check()
