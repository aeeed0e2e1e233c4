"""Whether an installed tfnas works: all stages of a small run, the public names, and the extras that are named.

    PYTHON tests/smoke.py [EXTRA ...]

It needs nothing but Python and the installation: no pytest, and of this repository only pipelines/. It uses the extras
that are named (formats, serving, kfp, vertex), and checks that the others are asked for in one line with the command
that installs them. About a minute on two cores.
"""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
TFNAS = pathlib.Path(sys.executable).with_name("tfnas")
SMALL = [
    *("--config.supernet.width=4", "--config.search.epochs=6", "--config.search.warmup_epochs=2"),
    *("--config.sample.num_candidates=12", "--config.sample.num_random=4", "--config.retrain.epochs=3"),
    *("--config.evaluate.threshold=0", "--config.evaluate.max_drop=1"),
]
# One module of each extra, without which it is not installed.
EXTRAS = {"formats": "tf2onnx", "serving": "tensorflow_serving", "kfp": "kfp", "vertex": "google.cloud.aiplatform"}

API = """
import keras, numpy as np, tfnas
layers = keras.layers
image = keras.Input((8, 8, 3))
x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image)))
x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
rng = np.random.default_rng(0)
images, labels = rng.normal(size=(64, 8, 8, 3)).astype("float32"), rng.integers(0, 3, 64)
supernet = tfnas.gate(model, parameters=0.6, steps=24, num_examples=64)
supernet.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
supernet.fit(images, labels, batch_size=16, epochs=6, verbose=0)
candidates = supernet.posterior().sample(6, seed=0)
ranking = tfnas.rank(supernet, candidates, [(images, labels)])
small = tfnas.subnet(supernet, ranking.best)
assert small.count_params() < model.count_params()
assert tfnas.cost(supernet.graph, ranking.best).parameters <= 0.6 * tfnas.cost(supernet.graph).parameters
supernet.save("supernet.keras")
assert tfnas.load("supernet.keras").posterior() == supernet.posterior()
for name in dir(tfnas):
    getattr(tfnas, name)
import tfnas.tuning.tuner
"""


def run(*command, code=0, **environment):
    """Runs a command; returns its standard output, or its standard error if it is to fail."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr if code else done.stdout


def stage(name, *options):
    """Runs `tfnas NAME` on the demo's config, made small."""
    return run(TFNAS, name, "--config=search/digits.py", "--workdir=run", *SMALL, *options)


def core():
    """All that needs no extra."""
    run(sys.executable, "-c", "import sys, tfnas; assert 'tensorflow' not in sys.modules")
    assert "tfnas init FOLDER" in run(TFNAS, "--help")
    said = run(TFNAS, "--help", code=1, KERAS_BACKEND="jax")
    assert said.count("\n") == 1 and "set KERAS_BACKEND=tensorflow" in said, said
    run(TFNAS, "init", "search")
    run(sys.executable, "-c", API)
    printed = stage("run")
    assert "reloaded without tfnas" in printed and "found network, retrained" in printed, printed


def formats():
    """Three other formats, each compared in its own runtime."""
    printed = stage("export", "--config.export.formats=litert,onnx,openvino")
    assert all(f"{name}: " in printed for name in ("litert", "onnx", "openvino")), printed


def serving():
    """One request over REST."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tfnas.serving.server",
        "--model_base_path=run/export/digits",
        "--model_name=digits",
    ]
    server = subprocess.Popen([*command, f"--rest_api_port={port}", "--port=0"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/v1/models/digits", timeout=5) as answer:
                    break
            except OSError:
                assert server.poll() is None, "the server has stopped"
                time.sleep(0.5)
        body = json.dumps({"signature_name": "serving_default", "instances": [[[[0]] * 8] * 8]}).encode()
        with urllib.request.urlopen(f"http://localhost:{port}/v1/models/digits:predict", body, timeout=60) as answer:
            assert json.load(answer)["predictions"]
    finally:
        server.terminate()
        server.wait()


def kfp():
    """The pipeline, compiled."""
    run(*PIPELINE, "--compile_to=pipeline.yaml", PYTHONPATH="modules")
    assert "components:" in pathlib.Path("pipeline.yaml").read_text()


def vertex():
    """Vertex AI's client, imported."""
    run(sys.executable, "-c", "import google.cloud.aiplatform")


PIPELINE = [sys.executable, "-m", "pipelines.run", "--config=search/digits.py"]
# What asks for an extra that is not installed.
ASKING = {
    "formats": [TFNAS, "check", "--config=search/digits.py", "--workdir=run", "--config.export.formats=onnx"],
    "serving": [sys.executable, "-m", "tfnas.serving.server", "--model_base_path=run/export/digits"],
    "kfp": [*PIPELINE, "--compile_to=pipeline.yaml"],
    "vertex": [*PIPELINE, "--runner=vertex", "--project=p", "--bucket=gs://b/f"],
}


def main(named):
    start = time.monotonic()
    assert set(named) <= set(EXTRAS), f"extras: {', '.join(EXTRAS)}. Received: {named}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("modules").mkdir()
        pathlib.Path("modules/pipelines").symlink_to(ROOT / "pipelines")  # without the sources of tfnas
        core()
        for extra in named:
            globals()[extra]()
        absent = [extra for extra in EXTRAS if extra not in named and not installed(EXTRAS[extra])]
        for extra in absent:
            if extra == "vertex" and "kfp" in absent:
                continue  # the pipeline asks for kfp first
            # Python 3.12 warns of the oldest ml_collections.
            said = run(*ASKING[extra], code=1, PYTHONPATH="modules", PYTHONWARNINGS="ignore::SyntaxWarning")
            assert said.count("\n") == 1 and f"pip install 'tfnas[{extra}]'" in said, said
    print(f"smoke: core{''.join(f', {extra}' for extra in named)} ok, {time.monotonic() - start:.0f} s")


def installed(module):
    """Whether a module can be imported, without doing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
