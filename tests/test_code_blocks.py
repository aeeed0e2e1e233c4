"""Every code block of the documents is run, or accepted by its command line, or named here as neither."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import types
import urllib.request

import accepted
import numpy as np
import processes
import pytest
import yaml
from conftest import ROOT, TINY, tfnas_stage

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])

# What cannot be run or checked here, by document and beginning of the block or of the command, and why.
NOT_RUN = {
    ("docs/quickstart.md", "tfnas STAGE"): "says how the command line is made up",
    ("docs/quickstart.md", ".venv/bin/tensorboard"): "serves until it is stopped",
    ("docs/pipelines.md", "docker build"): "needs Docker and the network",
    ("docs/pipelines.md", "docker push"): "needs a registry",
    ("docs/pipelines.md", "kubectl port-forward"): "needs a cluster with Kubeflow Pipelines",
    ("docs/serving.md", "docker run"): "needs Docker and TensorFlow Serving's image",
    ("docs/serving.md", "cat > Dockerfile.digits"): "needs Docker and a Google Cloud project",
}
# Shell blocks that are run against the server, by their beginning.
CLIENTS = ("curl -d", "(printf")

# What is made smaller to be run here: as few epochs and candidates as show that it runs.
SMALLER = {
    "README.md": [("epochs=20", "epochs=1")],
    "docs/quickstart.md": [
        ("epochs = 40", "epochs = 2"),
        ("sample(200,", "sample(20,"),
        # A network that is traced in a second.
        (
            "tfnas.supernets.multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))",
            "given.model()",
        ),
    ],
    "docs/your_model.md": [
        ("epochs=20", "epochs=0"),
        ("max_drop=0.01, trained=True", "max_drop=0.01, trained=True, tries=1"),
        ("multiply_adds=(0.75, 0.5, 0.25)", "multiply_adds=(0.5,)"),
        ("epochs = 20", "epochs = 1"),
        ("sample(500,", "sample(20,"),
        ("sample(1500,", "sample(20,"),
    ],
}
# What a reader has, and a block takes for granted: run before the block that begins with these words.
GIVEN = {
    ("README.md", "import tfnas"): """
        import sys
        sys.modules["my_project"] = given.my_project()
        """,
    ("docs/your_model.md", "result = tfnas.shrink"): """
        import keras, tfnas
        model, train, validation = given.model(), given.batches(0, 300), given.batches()
        """,
    (
        "docs/your_model.md",
        "supernet = tfnas.gate",
    ): """
        import keras, tfnas, tensorflow as tf
        from tfnas.config import Config, Data, Retrain, Search, Supernet
        model, num_images, steps, validation_batches = given.model(), 300, 6, given.batches()
        """,
    (
        "docs/your_model.md",
        "optimizer = tfnas.GatedOptimizer",
    ): """
        train, loss = given.batches(0, 300), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        """,
    (
        "docs/your_model.md",
        "candidates = supernet.posterior",
    ): """
        import keras
        supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        """,
    ("docs/your_model.md", "def load"): "train = validation = test = None",
}


class Block:
    def __init__(self, document, language, text):
        self.document = str(document.relative_to(ROOT))
        self.language = language
        self.text = text

    def __repr__(self):
        return f"{self.document}: {self.text.splitlines()[0]}"


def blocks(*languages):
    """The fenced blocks of all documents that are in one of these languages."""
    found = []
    for document in DOCUMENTS:
        for indent, language, text in re.findall(
            r"^( *)```([^\n]*)\n(.*?)^\1```$", document.read_text(), re.MULTILINE | re.DOTALL
        ):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            found.append(Block(document, language, "\n".join(lines) + "\n"))
    assert len(found) > 40
    return [block for block in found if block.language in languages] if languages else found


def excepted(document, text):
    """The key of NOT_RUN by which a block, or a command, is not run; or None."""
    return next((key for key in NOT_RUN if key[0] == document and text.startswith(key[1])), None)


def commands(text):
    """The commands of a shell block: lines without their comments, those that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def words(command):
    """Of a command, without the variables that are set before it and without a comment."""
    found = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", found[0]):
        found.pop(0)
    return found


def inline():
    """Commands that stand in the text, as far as they are given in full: (document, command)."""
    for document in DOCUMENTS:
        prose = re.sub(r"^( *)```.*?^\1```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for command in re.findall(r"`(\.venv/bin/(?:tfnas|python) [^`]*)`", prose):
            command = " ".join(command.split())
            if "..." not in command and re.search(r" (-|\S+\.py)", command):
                yield str(document.relative_to(ROOT)), command


def test_every_block_says_its_language():
    for block in blocks():
        language = block.language
        assert language in ("python", "sh", "yaml", "text") or re.fullmatch(r"\{[a-z-]+\}.*", language), repr(block)


def test_what_is_shown_as_text_is_no_command():
    for block in blocks("text"):
        for line in block.text.splitlines():
            command = re.match(r"\s*(\$ |(\.venv/bin/|make |tfnas [a-z]|python |pip |docker |curl |kubectl ))", line)
            assert not command, f"{block.document}: '{line}' is a command: give its block the language 'sh'"


def test_every_exception_is_still_there():
    used = set()
    for block in blocks("sh", "text"):
        used |= {excepted(block.document, text) for text in (block.text, *commands(block.text))}
    assert used - {None} == set(NOT_RUN)
    begins = [(block.document, block.text) for block in blocks("python")]
    for document, start in GIVEN:
        assert any(d == document and text.startswith(start) for d, text in begins), start


def test_settings_in_yaml_can_be_read():
    found = blocks("yaml")
    assert found
    for block in found:
        assert isinstance(yaml.safe_load(block.text), dict), repr(block)


@pytest.mark.slow
def test_commands_are_accepted(tmp_path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked, targets = [], set()
    shown = [
        (block.document, command)
        for block in blocks("sh")
        if not excepted(block.document, block.text) and not block.text.startswith(CLIENTS)
        for command in commands(block.text)
        if not excepted(block.document, command)
    ]
    for document, command in [*shown, *inline()]:
        given = words(command)
        if given[0] == "make":
            targets |= set(given[1:])
        elif given[:2] == ["pip", "install"]:
            asked_for = re.findall(r"(?:tfnas|\.)\[([\w,]+)\]", command)
            assert {extra for listed in asked_for for extra in listed.split(",")} <= set(extras), command
            assert all((ROOT / name).exists() for name in given if name.endswith(".txt")), command
        else:
            asked.append((document, command, given))
    assert targets >= {"demo", "test", "docs"} and len(asked) > 20
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A mistyped key, an unknown stage and an unknown flag are seen.
    wrong = ["tfnas run --config=configs/digits.py --workdir=W --config.search.epoch=3", "tfnas serch --workdir=W"]
    wrong += ["python -m benchmarks.ranking --data=DIR", "python -m pipelines.run --runner=here", "ls -l"]
    *answers, a, b, c, d, e = accepted.refusals([*(g for _, _, g in asked), *map(shlex.split, wrong)], tmp_path)
    assert "no key 'search.epoch'" in a and "serch" in b and "Unknown command line flag 'data'" in c
    assert "value should be one of" in d and "no program whose command line is known here" in e
    refused = [
        f"{document}: {command}\n{said}" for (document, command, _), said in zip(asked, answers, strict=True) if said
    ]
    assert not refused, "\n".join(refused)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with the small run that the blocks speak of, at runs/digits."""
    folder = tmp_path_factory.mktemp("documents")
    options = ["--config.export.formats=onnx", "--config.search.epochs=2", "--config.retrain.epochs=1"]
    tfnas_stage("run", folder / "runs" / "digits", *options, "--config.sample.num_candidates=10", settings=TINY)
    return folder


@pytest.fixture(scope="module")
def server(run):
    """Ports of REST and gRPC of the server that docs/serving.md starts, on the run's model."""
    (command,) = [
        c
        for b in blocks("sh")
        if b.document == "docs/serving.md"
        for c in commands(b.text)
        if "tfnas.serving.server" in c
    ]
    arguments = [*words(command)[3:], "--port=0", "--rest_api_port=0"]
    arguments = [a.replace("=runs/", f"={run}/runs/") for a in arguments]
    (run / "stdout").touch()
    code = "import runpy; runpy.run_module('tfnas.serving.server', run_name='__main__')"
    process = processes.start(code, arguments, run / "stdout", run / "stderr")
    deadline = time.monotonic() + 120
    while not (ready := re.search(r"ready: .*REST http://\S+:(\d+), gRPC \S+:(\d+)", (run / "stdout").read_text())):
        assert process.is_alive() and time.monotonic() < deadline, (run / "stderr").read_text()
        time.sleep(0.1)
    yield {"8501": ready[1], "8500": ready[2]}
    process.terminate()
    process.join()
    assert process.exitcode == 0


def check_upload(api, *, repo_id, folder_path):
    """Stands for the upload: the card has metadata that the hub reads, and the files are there that it names."""
    import huggingface_hub

    huggingface_hub.utils.validate_repo_id(repo_id)
    card = huggingface_hub.ModelCard.load(folder_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("keras", "image-classification")
    assert card.text.strip() == (folder_path / "model_card.md").read_text().strip()
    assert {"1", "model.keras", "labels.txt"} <= {path.name for path in folder_path.iterdir()}
    (folder_path / "README.md").unlink()


class Given:
    """What a reader has: a model of theirs, and digits to try it on."""

    def __init__(self):
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images, self.labels = digits.images[:400, ..., None].astype("float32") / 16, digits.target[:400]

    def model(self):
        import tiny

        return tiny.build((8, 8, 1), 10)

    def batches(self, start=300, stop=400):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((self.images[start:stop], self.labels[start:stop])).batch(50)

    def my_project(self):
        module = types.ModuleType("my_project")
        module.model, module.train, module.validation = self.model(), self.batches(0, 300), self.batches()
        return module


PYTHON = sorted({block.document for block in blocks("python")})


# Keras shuffles by default, and warns that a tf.data.Dataset is not shuffled.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("document", PYTHON)
def test_python_runs(document, run, server, monkeypatch):
    from tfnas.config import Config, Data

    monkeypatch.chdir(run)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, repo_id, exist_ok: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", check_upload)
    monkeypatch.setitem(sys.modules, "my_project", None)  # what a block puts there is gone afterwards
    namespace = {"given": Given(), "__name__": "documents"}
    for block in [block for block in blocks("python") if block.document == document]:
        for (where, start), before in GIVEN.items():
            if where == document and block.text.startswith(start):
                exec("\n".join(line.strip() for line in before.splitlines()), namespace)
        code = block.text
        for old, new in SMALLER.get(document, []):
            code = code.replace(old, new)
        for port, real in server.items():
            code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
        exec(compile(code, repr(block), "exec"), namespace)
        if isinstance(namespace.get("data"), Data):
            Config(data=namespace["data"]).check()
    text = "".join(block.text for block in blocks("python") if block.document == document)
    for old, _ in SMALLER.get(document, []):
        assert old in text, f"{document}: '{old}' is not there any more"
    if "small_model" in text:
        assert (run / "small_model" / "saved_model.pb").exists()
        shutil.rmtree(run / "small_model")


@pytest.mark.slow
def test_clients_on_the_command_line_are_answered(run, server):
    import tensorflow as tf

    if not (shutil.which("curl") and shutil.which("base64")):
        pytest.skip("there is no curl or no base64 on this machine")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype("uint8")
    (run / "digit.png").write_bytes(tf.io.encode_png(pixels).numpy())
    clients = [block for block in blocks("sh") if block.text.startswith(CLIENTS)]
    assert len(clients) == 3
    for block in clients:
        code = re.sub(r":(850[01])\b", lambda port: f":{server[port[1]]}", block.text)
        code = code.replace("photos/disc/000.jpg", "digit.png").replace("models/photos:", "models/digits:")
        done = subprocess.run(["bash", "-c", code], cwd=run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)["predictions"]
        assert len(answer["probabilities"]) == 10 and answer["scores"][0] == max(answer["probabilities"])
    with urllib.request.urlopen(f"http://127.0.0.1:{server['8501']}/v1/models/digits") as response:
        assert "AVAILABLE" in response.read().decode()


@pytest.mark.slow
def test_pictures_are_drawn_from_a_run(run, tmp_path):
    script = [sys.executable, ROOT / "docs" / "pictures.py", f"--into={tmp_path}"]
    subprocess.run([*script, f"--workdir={run / 'runs' / 'digits'}"], check=True, cwd=ROOT)
    drawn = {path.name for path in tmp_path.iterdir()}
    kept = {path.name for path in (ROOT / "docs" / "images").glob("*.svg")}
    assert drawn == kept - {"imports.svg", "contest_16.svg"}
    assert all(path.read_text().startswith("<svg") for path in tmp_path.iterdir())
