"""What is exported: signatures, warm-up requests, the model card, and the gate before all of it is let out."""

import contextlib
import dataclasses
import hashlib
import io
import json
import resource
import shutil
import struct
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import random_weights, tiny_config
from PIL import Image
from scipy.special import softmax

from tfnas import config
from tfnas.common import atomic, digests
from tfnas.common.errors import UserError
from tfnas.data import pipeline, sources
from tfnas.exporting import savedmodel, verification, warmup
from tfnas.gating import saving
from tfnas.reporting import model_card
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.stages import evaluate, export, retrain, sample, search
from tfnas.training import networks

DATA = config.Data(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
NAMES = tuple("abcdefg")


def network(shape):
    model = keras.Sequential(
        [
            keras.Input(shape, name="image"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(len(NAMES)),
        ]
    )
    random_weights(model, np.random.default_rng(3))
    model.layers[-1].kernel.assign(8 * model.layers[-1].kernel)
    return model


def written(path, model, chosen, ensemble=()):
    """The signatures of a SavedModel of `model`, for images as `chosen` says."""
    splits = pipeline.Splits(None, None, None, {}, model.input_shape[1:], NAMES)
    savedmodel.write(model, splits, config.Config(data=chosen), path, ensemble)
    return tf.saved_model.load(str(path)).signatures


def encoded(image, form):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


def answers(model, images):
    """Probabilities by NumPy, of images of the network's size."""
    pixels = (np.asarray(images).astype(np.float64) / 255 - DATA.mean) / DATA.std
    return softmax(model(pixels.astype(np.float32)).numpy().astype(np.float64), axis=-1)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Images of one size only, and an ensemble of three."""
    keras.utils.set_random_seed(1)
    members = [network((12, 10, 3)) for _ in range(3)]
    for i, member in enumerate(members):
        member.layers[-1].bias.assign(np.random.default_rng(i).normal(0, 2, len(NAMES)))
    return members, written(tmp_path_factory.mktemp("fixed") / "model", members[0], DATA, members)


@pytest.fixture(scope="module")
def resized(tmp_path_factory):
    model = network((12, 12, 3))
    return model, written(tmp_path_factory.mktemp("resized") / "model", model, dataclasses.replace(DATA, image_size=12))


@pytest.mark.parametrize("number", [1, 6])
def test_raw_images_are_answered_with_probabilities_and_names(fixed, rng, number):
    members, served = fixed
    images = rng.integers(0, 256, (number, 12, 10, 3), np.uint8)
    answer = {key: value.numpy() for key, value in served["serving_default"](image=tf.constant(images)).items()}
    expected = answers(members[0], images)
    assert set(answer) == {"probabilities", "classes", "scores"} and answer["scores"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    order = np.argsort(-answer["probabilities"], axis=-1, kind="stable")[:, :5]
    assert answer["classes"].astype(str).tolist() == [[NAMES[i] for i in row] for row in order]
    np.testing.assert_array_equal(answer["scores"], np.take_along_axis(answer["probabilities"], order, -1))


def test_encoded_images_are_decoded_as_the_data_set_was(fixed, rng):
    """A JPEG's pixels depend on the decoder: the fast one, by which TFDS reads it, and no other."""
    members, served = fixed
    image = rng.integers(0, 256, (12, 10, 3), np.uint8)
    files = [encoded(image, form) for form in ("PNG", "JPEG", "BMP")]
    pixels = [tfds.features.Image(shape=(None, None, 3)).decode_example(file).numpy() for file in files[:2]]
    np.testing.assert_array_equal(pixels[0], image)
    answer = served["serve_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(answer["probabilities"], answers(members[0], [*pixels, image]), atol=1e-5)
    assert answer["classes"].shape == answer["scores"].shape == (3, 5)


def test_encoded_images_of_several_sizes_are_each_resized(resized, rng):
    model, served = resized
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((12, 12), (24, 36), (7, 9))]
    answer = served["serve_bytes"](image_bytes=tf.constant([encoded(image, "PNG") for image in images]))
    # Averages of whole areas in the second, the same in NumPy.
    halved = np.rint(images[1].reshape(12, 2, 12, 3, 3).mean((1, 3))).astype(np.uint8)
    np.testing.assert_allclose(answer["probabilities"][:2], answers(model, [images[0], halved]), atol=1e-5)
    for image, got in zip(images, answer["probabilities"], strict=True):
        alone = served["serving_default"](image=tf.constant(image[None]))["probabilities"][0]
        np.testing.assert_allclose(got, alone, atol=1e-6)


def test_uncertainty_is_the_ensembles(fixed, rng):
    members, served = fixed
    images = rng.integers(0, 256, (20, 12, 10, 3), np.uint8)
    answer = {key: value.numpy() for key, value in served["serve_uncertainty"](image=tf.constant(images)).items()}
    single = np.stack([answers(member, images) for member in members])
    mean = single.mean(0)
    np.testing.assert_allclose(answer["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(answer["entropy"], -(mean * np.log(mean)).sum(-1), atol=1e-4)
    disagreement = (single.argmax(-1) != mean.argmax(-1)).mean(0)
    assert 0 < disagreement.max() < 1
    np.testing.assert_allclose(answer["disagreement"], disagreement, atol=1e-6)
    assert answer["classes"][:, 0].astype(str).tolist() == [NAMES[i] for i in mean.argmax(-1)]
    np.testing.assert_allclose(answer["scores"], -np.sort(-mean, -1)[:, :5], atol=1e-5)


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ((2, 13, 10, 3), "fixed"),
        ((2, 10, 12, 3), "fixed"),
        ((0, 12, 10, 3), "fixed resized"),
        ((2, 12, 10, 1), "fixed resized"),
        ((12, 10, 3), "fixed resized"),
        ((1, 2, 12, 10, 3), "fixed resized"),
        ((1, 0, 12, 3), "fixed resized"),
    ],
)
def test_images_of_another_shape_are_refused_inside_the_signature(fixed, resized, shape, sizes):
    for (_, served), expected in ((fixed, "12, 10"), (resized, "H, W")):
        if ("fixed" if served is fixed[1] else "resized") not in sizes:
            continue
        for name in set(served) - {"serve_bytes"}:
            with pytest.raises(tf.errors.InvalidArgumentError) as error:
                served[name](image=tf.zeros(shape, tf.uint8))
            received = " ".join(map(str, shape))
            assert f"[image: shape (N, {expected}, 3) of one or more images expected. Received:] [{received}]" in str(
                error.value
            )


def test_bytes_that_are_no_such_image_are_refused_inside_the_signature(fixed, resized, rng):
    image = rng.integers(0, 256, (12, 10, 3), np.uint8)
    good, large = encoded(image, "PNG"), encoded(np.zeros((5, 9, 3), np.uint8), "PNG")
    other = "image_bytes: PNG or JPEG or BMP files expected. Received another, of number and length:"
    cases = [
        ([], "image_bytes: one or more files expected. Received:] [0]"),
        ([good, b"hello"], f"{other}] [1] [5]"),
        ([b""], f"{other}] [0] [0]"),
        ([encoded(image, "GIF")], f"{other}] [0] [{len(encoded(image, 'GIF'))}]"),
        ([good[:60]], "Invalid PNG data, size 60"),
    ]
    for served in (fixed[1], resized[1]):
        for files, message in cases:
            with pytest.raises(tf.errors.InvalidArgumentError) as error:
                served["serve_bytes"](image_bytes=tf.constant(files, tf.string))
            assert message in str(error.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        fixed[1]["serve_bytes"](image_bytes=tf.constant([good, large]))
    message = "image_bytes: images of 12 x 10 pixels expected. Received, of number and size:] [1] [5 9]"
    assert message in str(error.value)
    assert resized[1]["serve_bytes"](image_bytes=tf.constant([good, large]))["scores"].shape == (2, 5)


def claimed(height, width, form):
    """A short file whose header claims a size; made by hand, since no encoder would."""
    if form == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunks = [header, b"IDAT" + zlib.compress(bytes(99)), b"IEND"]
        packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    if form == "JPEG":
        whole = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
        place = whole.index(b"\xff\xc0") + 5  # of the height in the frame's header, the width behind it
        return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]
    whole = encoded(np.zeros((8, 8, 3), np.uint8), "BMP")
    return whole[:18] + struct.pack("<ii", width, -height) + whole[26:]


@pytest.mark.parametrize(
    "form, height, width",
    [
        ("PNG", 30_000, 30_000),
        ("PNG", 22_000, 22_000),  # which TensorFlow itself decodes
        ("PNG", 2**31 - 1, 1),
        ("PNG", 2**32 - 1, 2**32 - 1),
        ("PNG", 0, 5),
        ("JPEG", 60_000, 60_000),
        ("BMP", 30_000, 30_000),
    ],
)
def test_a_size_is_refused_by_the_header(fixed, resized, cut, form, height, width, monkeypatch):
    """Before any pixel of it takes memory: of 1.4 GB at the least, nothing is allocated."""
    file = claimed(height, width, form)
    for served in (fixed[1], resized[1], cut):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            served["serve_bytes"](image_bytes=tf.constant([file]))
        assert "pixels expected" in str(error.value) and "Received, of number and size:" in str(error.value)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Signatures that scale the shorter side and cut out the center; at most 10,000 pixels."""
    model, chosen = network((12, 12, 3)), dataclasses.replace(DATA, image_size=12, random_resized_crop=True)
    splits = pipeline.Splits(None, None, None, {}, (12, 12, 3), NAMES)
    path = tmp_path_factory.mktemp("cut") / "model"
    savedmodel.write(model, splits, config.Config(data=chosen, export=config.Export(max_pixels=10_000)), path)
    return tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize(
    "height, width, fits",
    # 12 / 0.875 squared, times the ratio of the sides: 10,000 is reached at a ratio of 53.2.
    [(100, 100, True), (100, 101, False), (2, 106, True), (106, 2, True), (2, 107, False), (1, 9000, False)],
)
def test_pixels_are_limited_as_sent_and_as_scaled(cut, height, width, fits):
    image = np.zeros((height, width, 3), np.uint8)
    requests = [
        ("serve_bytes", {"image_bytes": tf.constant([encoded(image, form)])}, "image_bytes: images of")
        for form in ("PNG", "JPEG", "BMP")
    ]
    for name, sent, title in (*requests, ("serving_default", {"image": tf.constant(image[None])}, "image:")):
        if fits:
            assert cut[name](**sent)["scores"].shape == (1, 5)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"{title} at most 10000 pixels expected"):
                cut[name](**sent)


def test_images_of_two_channels_come_in_no_file(tmp_path):
    chosen = dataclasses.replace(DATA, mean=(0.5,), std=(0.5,))
    assert set(written(tmp_path / "model", network((8, 8, 2)), chosen)) == {"serving_default"}


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """A SavedModel of data of several sizes whose center is cut out: network, source, splits, config, path, correct."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*rng.integers(14, 40, 2), 3), np.uint8) for _ in range(90)]
    labels = rng.integers(0, 7, len(images))

    def dataset(first, last):
        spec = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64))
        return tf.data.Dataset.from_generator(
            lambda: zip(images[first:last], labels[first:last], strict=True), output_signature=spec
        )

    parts = {"train": dataset(0, 0), "validation": dataset(0, 10), "test": dataset(10, 90)}
    source = sources.Source(parts, {"train": 0, "validation": 10, "test": 80}, (None, None, 3), NAMES)
    settings = config.Config(data=dataclasses.replace(DATA, image_size=12, random_resized_crop=True))
    splits = pipeline.from_source(source, settings.data)
    model, path = network((12, 12, 3)), tmp_path_factory.mktemp("cropped") / "model"
    savedmodel.write(model, splits, settings, path)
    prepared = [(image, label) for image, label in splits.test.as_numpy_iterator()]
    predicted = answers(model, [image for image, _ in prepared]).argmax(-1)
    return model, source, splits, settings, path, int(np.sum(predicted == [label for _, label in prepared]))


@pytest.mark.slow
def test_gate_lets_out_what_answers_as_the_network_does(cropped, monkeypatch):
    *arguments, correct = cropped
    environments, popen = [], verification.subprocess.Popen
    monkeypatch.setattr(
        verification.subprocess, "Popen", lambda *a, env, **k: environments.append(env) or popen(*a, env=env, **k)
    )
    found = verification.check(*arguments, correct, 80)
    assert environments[0]["CUDA_VISIBLE_DEVICES"] == "-1"  # this process may hold all of a GPU's memory
    assert found["largest_difference"] < 1e-5 and (found["correct"], found["total"]) == (correct, 80)


@pytest.mark.slow
def test_gate_refuses_another_network_and_what_cannot_be_reloaded(cropped, tmp_path):
    _, *arguments, correct = cropped
    other = network((12, 12, 3))
    other.set_weights([weight + 0.1 for weight in other.get_weights()])
    with pytest.raises(UserError, match="serving_default of the reloaded SavedModel differs from the network by"):
        verification.check(other, *arguments, correct, 80)
    arguments[3] = tmp_path
    with pytest.raises(RuntimeError, match=r"could not be used in a fresh process:\n(.|\n)*SavedModel file does not"):
        verification.check(cropped[0], *arguments, correct, 80)


def test_gate_compares_on_the_cpu_in_full_precision(cropped, monkeypatch):
    """TF32 rounds to 10 bits, and a GPU sums in another order; neither can be had here, but what is asked for."""
    softmax, device, seen, devices = tf.nn.softmax, tf.device, [], []

    @contextlib.contextmanager
    def on(name):
        devices.append(name)
        with device(name):
            yield
        devices.append("left")

    def seeing(logits):
        seen.append((tf.config.experimental.tensor_float_32_execution_enabled(), devices[-1]))
        return softmax(logits)

    def ask(signature, images):
        raise InterruptedError

    monkeypatch.setattr(verification.tf, "device", on)
    monkeypatch.setattr(verification.tf.nn, "softmax", seeing)
    monkeypatch.setattr(verification, "_fresh_process", lambda path: contextlib.nullcontext(ask))
    with pytest.raises(InterruptedError):
        verification.check(*cropped, 80)
    assert seen == [(False, "CPU:0")] and tf.config.experimental.tensor_float_32_execution_enabled()


def test_gate_refuses_another_number_of_correct_answers(cropped, monkeypatch):
    def ask(signature, images):  # as a model does that knows one class
        return np.eye(7)[[0] * len(images)], [NAMES[0]] * len(images)

    monkeypatch.setattr(verification, "_fresh_process", lambda path: contextlib.nullcontext(ask))
    monkeypatch.setattr(verification, "_difference", lambda *_: 0.0)
    words = "of 80 test images correctly, but the network 80 of 80"
    with pytest.raises(UserError, match=words):
        verification.check(*cropped[:-1], 80, 80)


def test_gate_refuses_other_names(cropped):
    probabilities = np.eye(7)[[0, 3]]
    verification._check_names("s", probabilities, ["a", "d"], cropped[2])
    with pytest.raises(UserError, match="s: .*'d'.* Received: 'b'"):
        verification._check_names("s", probabilities, ["a", "b"], cropped[2])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A short run of the digits up to its export, with an ensemble."""
    path = tmp_path_factory.mktemp("exported")
    settings = tiny_config(
        data={"train": "train[:1000]"},
        search={"epochs": 1, "guard": "off"},
        sample={"num_candidates": 5, "num_random": 1, "num_tested": 3, "recalibrate": 100, "parameters": 0.6},
        retrain={"epochs": 0},
        evaluate={"min_accuracy": 0.05},
        export={"version": 3, "uncertainty": 2},
    )
    for stage in (search, sample, retrain, evaluate, export):
        stage.run(settings, path)
    return path, settings


@pytest.mark.slow
def test_warm_up_requests_are_answered(exported):
    """Parsed by TensorFlow Serving's own messages, and sent to the signatures they name."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path, _ = exported
    served = tf.saved_model.load(str(path / "export/digits/3")).signatures
    sizes = []
    for record in tf.data.TFRecordDataset(str(path / "export/digits/3" / warmup.FILE)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert request.model_spec.name == "digits" and log == prediction_log_pb2.PredictionLog(
            predict_log=prediction_log_pb2.PredictLog(
                request=predict_pb2.PredictRequest(
                    model_spec=request.model_spec,
                    inputs={key: tf.make_tensor_proto(value) for key, value in inputs.items()},
                )
            )
        )
        inputs = {key: tf.constant(value) for key, value in inputs.items()}
        answer = served[request.model_spec.signature_name](**inputs)
        ((key, value),) = inputs.items()
        assert answer["scores"].shape == (len(value), 5)
        sizes.append((request.model_spec.signature_name, key, len(value)))
    assert sizes == [
        ("serving_default", "image", 1),
        ("serving_default", "image", 8),
        ("serve_bytes", "image_bytes", 1),
        ("serve_bytes", "image_bytes", 8),
        ("serve_uncertainty", "image", 1),
        ("serve_uncertainty", "image", 8),
    ]


@pytest.mark.slow
def test_uncertainty_is_that_of_the_rankings_best(exported):
    """The members are the supernet under the masks, with statistics of their own."""
    path, settings = exported
    ranked = json.loads((path / stage_table.RANKING).read_text())["kinds"]["posterior"]["race"]
    assert len(ranked["leaders"]) == 3 and ranked["leaders"][0] == ranked["architecture"]
    networks.set_seed(settings.seed)
    splits = pipeline.load(settings.data, path / "tensorflow_datasets")
    supernet = saving.load(path / stage_table.SUPERNET)
    recalibration = networks.recalibration(settings, splits, supernet)
    images = np.stack([image for image, _ in splits.validation.take(30).as_numpy_iterator()])
    expected = []
    for leader in ranked["leaders"][:2]:
        architecture = Architecture.from_json(json.dumps(leader))
        recalibration.apply(architecture)
        supernet.set_architecture(architecture)
        pixels = pipeline.standardize(images, settings.data)
        expected.append(softmax(supernet(pixels, training=False).numpy(), axis=-1))
    served = tf.saved_model.load(str(path / "export/digits/3")).signatures["serve_uncertainty"]
    np.testing.assert_allclose(served(image=tf.constant(images))["mean"], np.mean(expected, axis=0), atol=1e-4)


@pytest.mark.slow
def test_card_says_what_was_measured(exported):
    path, settings = exported
    folder = path / "export/digits/3"
    card = json.loads((folder / "assets.extra" / model_card.JSON).read_text())
    assert card == json.loads((path / "export/digits" / model_card.JSON).read_text())
    results = json.loads((path / stage_table.RESULTS).read_text())
    row = next(row for row in results["rows"] if row["name"] == results["chosen"])
    test = card["metrics"]["test"]
    assert test["accuracy"] == row["test_accuracy"] and test["total"] == 400 == card["reloaded"]["total"]
    assert test["correct"] == card["reloaded"]["correct"] == np.trace(card["metrics"]["confusion"])
    n, p, z = 400, test["accuracy"], 1.959963984540054  # Wilson's interval in closed form
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    np.testing.assert_allclose([test["low"], test["high"]], bounds, rtol=1e-9)
    assert card["data"]["sizes"] == {"train": 1000, "validation": 397, "test": 400}
    assert card["network"]["parameters"] == row["parameters"] < card["network"]["full"]["parameters"]
    assert card["versions"]["export"]["tensorflow"] == tf.__version__
    for file, digest in card["sha256"]["saved_model"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert {"saved_model.pb", warmup.FILE} < set(card["sha256"]["saved_model"])
    for file, digest in card["sha256"]["inputs"].items():
        assert hashlib.sha256((path / file).read_bytes()).hexdigest() == digest
    text = (path / "export/digits" / model_card.MARKDOWN).read_text()
    assert text == (folder / "assets.extra" / model_card.MARKDOWN).read_text()
    assert f"| test | {p:.2%} | {bounds[0]:.2%} to {bounds[1]:.2%} | 400 |" in text
    assert "serve\\_uncertainty answers by 2 other networks" in text
    written = json.loads((path / stage_table.EXPORT_RESULTS).read_text())
    assert written["test_accuracy"] == written["served_test_accuracy"] == p


@pytest.mark.slow
def test_no_version_is_left_of_what_does_not_pass(exported):
    path, settings = exported
    other = dataclasses.replace(settings, export=config.Export(version=4))
    work = workdir.Workdir(path)
    results = json.loads((path / stage_table.RESULTS).read_text())
    for k in range(10):  # so many that no near-tie explains it
        taken = min(2, results["confusion"][k][k])
        results["confusion"][k][k] -= taken
        results["confusion"][k][(k + 1) % 10] += taken
    before = {name: (path / name).read_bytes() for name in (stage_table.RESULTS, stage_table.MANIFEST)}
    try:
        digest = digests.of_file(work.write_json(stage_table.RESULTS, results))
        manifest = work.manifest()
        manifest.stages["retrain"].outputs[stage_table.RESULTS] = digest
        manifest.stages["evaluate"].inputs[stage_table.RESULTS] = digest
        work.write_sealed(stage_table.MANIFEST, manifest)
        with pytest.raises(UserError, match="of 400 test images correctly, but the network"):
            export.run(other, path)
    finally:
        for name, content in before.items():
            (path / name).write_bytes(content)
    assert sorted(file.name for file in (path / "export/digits").iterdir()) == [
        "3",
        "architecture.json",
        "labels.txt",
        "model.keras",
        "model_card.json",
        "model_card.md",
    ]


def once(read):
    """`read` for several exports of the same."""
    found = []

    def reads(*arguments):
        if not found:
            found.append(read(*arguments))
        return found[0]

    return reads


class Killed(BaseException):
    """What a SIGKILL leaves behind: nothing is cleaned up after it."""


STEPS = "savedmodel.write warmup.write verification.check conversion.convert".split()
STEPS += "model_card.card model_card.markdown".split()


@pytest.mark.slow
def test_a_failure_at_any_step_leaves_the_served_version_as_it_was(exported, tmp_path, monkeypatch):
    """Each step fails, and each is killed; then the same export ends well. The steps' content is the run's number."""
    path = tmp_path / "run"
    shutil.copytree(exported[0], path)
    folder = path / "export" / "digits"
    for name in ("3", "onnx"):  # short ones; onnx is of an earlier export with another setting
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        (folder / name / "saved_model.pb").write_text("before")
    settings = dataclasses.replace(exported[1], export=config.Export(version=3, formats=("litert",)))
    steps, fails_at, error = [], 0, Killed

    def step(name, work):
        def stepped(*arguments, **named):
            steps.append(name)
            if len(steps) == fails_at:
                if name == "atomic.replace":  # cut off before the change, which is one system call
                    raise error(28, "no space")
                with contextlib.suppress(Exception):
                    work(*arguments, **named)
                raise error("in the middle of it")
            return work(*arguments, **named)

        return stepped

    def saved_model(model, splits, config, target, ensemble):
        (target / "assets.extra").mkdir(parents=True)
        (target / "saved_model.pb").write_text("after")

    def converted(model, splits, config, formats, target):
        (target / "litert").mkdir()
        (target / "litert" / "model.tflite").write_text("after")
        return []

    correct = {"correct": 1, "total": 1, "largest_difference": 0.0}
    replacements = {
        "savedmodel.write": saved_model,
        "warmup.write": lambda *_: None,
        "verification.check": lambda *_: correct,
        "conversion.convert": converted,
        "model_card.card": lambda *_, **named: {"files": str(sorted(f.name for f in named["saved_model"].rglob("*")))},
        "model_card.markdown": lambda card: "after",
        "atomic.replace": export.atomic.replace,
    }
    for name, work in replacements.items():
        module, function = name.split(".")
        monkeypatch.setattr(getattr(export, module), function, step(name, work))
    for module, function in ((export.sources, "load"), (export.pipeline, "from_source"), (export.saving, "load")):
        monkeypatch.setattr(module, function, once(getattr(module, function)))
    number_of_steps = 13  # the first six, and seven moves: LiteRT's, model.keras, four texts and the version
    served = digests.of_file(folder / "3")
    names, loadable = {file.name for file in folder.iterdir()}, set()
    for fails_at in range(1, number_of_steps + 1):
        for error in (OSError, Killed):
            steps.clear()
            with monkeypatch.context() as patched:
                if error is Killed:
                    patched.setattr(export.shutil, "rmtree", lambda *_, **__: None)
                with pytest.raises(error):
                    export.run(settings, path)
            assert len(steps) == fails_at
            assert digests.of_file(folder / "3") == served and (folder / "3" / "saved_model.pb").read_text() == "before"
            visible = {file.name for file in folder.iterdir() if not file.name.startswith(atomic.TEMPORARY)}
            assert visible - {"litert"} == names  # nothing half made under any name
            for file in visible & {"litert"}:
                assert [f.name for f in (folder / file).iterdir()] == ["model.tflite"]
            if (content := (folder / "model.keras").read_bytes()) not in loadable:
                keras.models.load_model(folder / "model.keras")
                loadable.add(content)
            assert error is Killed or visible == {file.name for file in folder.iterdir()}
            assert not workdir.Workdir(path).is_current("export", settings.check())
    steps, fails_at = [], 0
    export.run(settings, path)
    assert steps == [*STEPS, *["atomic.replace"] * 7] and len(steps) == number_of_steps
    assert (folder / "3" / "saved_model.pb").read_text() == "after"
    assert {file.name for file in folder.iterdir()} == names - {"onnx"} | {"litert"}
    assert workdir.Workdir(path).is_current("export", settings.check())
