"""The server, started as a user starts it, and asked as TensorFlow Serving's clients ask."""

import asyncio
import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import ROOT, load_config
from sklearn.datasets import load_digits

from tfnas.common.errors import UserError
from tfnas.serving import server
from tfnas.tasks import network_inputs

NAMES = tuple(f"digit {i}" for i in range(10))
MAX_BYTES, MAX_IMAGES = 1_000_000, 20


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(3)
    return rng.normal(size=(64, 10)).astype("float32"), rng.normal(size=10).astype("float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, weights):
    """Folder with version 3 of a linear classifier of digits, and what must not be taken for a newer one."""
    import keras
    import tensorflow as tf

    from tfnas.data import pipeline
    from tfnas.exporting import savedmodel, warmup

    linear = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    linear.set_weights(list(weights))
    nothing = tf.data.Dataset.range(0)
    splits = pipeline.Splits(nothing, nothing, nothing, {}, network_inputs.one((8, 8, 1)), NAMES)
    folder = tmp_path_factory.mktemp("export") / "digits"
    savedmodel.write(linear, splits, load_config("digits"), folder / "3", ensemble=[linear, linear])
    for other in ("1", "10.part", "model.keras"):
        (folder / other).mkdir()
    warmup.write(images(5, 2), splits, "digits", folder / "3", True)
    return folder


class Running:
    """The server's process, and both ways to ask it."""

    def __init__(self, exported, errors):
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        command = [sys.executable, "-m", "tfnas.serving.server", f"--model_base_path={exported}", "--model_name=digits"]
        command += ["--port=0", "--rest_api_port=0", f"--max_request_bytes={MAX_BYTES}", f"--max_images={MAX_IMAGES}"]
        self.errors = errors
        # Another test of this process may have set the level of TensorFlow's messages, as a command of tfnas does.
        own = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        with errors.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True, env=own)
        self.line = self.process.stdout.readline()
        found = re.fullmatch(
            r"ready: digits version 3; REST (http://127\.0\.0\.1:\d+), gRPC (127\.0\.0\.1:\d+)\n", self.line
        )
        assert found, self.line + errors.read_text()
        self.url = found[1]
        self.grpc_place = found[2]
        self.channel = grpc.insecure_channel(found[2])
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def rest(self, body, path="/v1/models/digits:predict", content_type="application/json"):
        """Status and JSON of a POST, or with body None of a GET."""
        body = json.dumps(body).encode() if isinstance(body, (dict, list, int)) else body
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def grpc(self, inputs, signature_name="", name="digits", version=None, output_filter=()):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = name
        request.model_spec.signature_name = signature_name
        if version is not None:
            request.model_spec.version.value = version
        for key, value in inputs.items():
            message = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
            request.inputs[key].CopyFrom(message)
        return self.stub.Predict(request, timeout=60)


@pytest.fixture(scope="module")
def running(exported, tmp_path_factory):
    one = Running(exported, tmp_path_factory.mktemp("server") / "stderr.txt")
    yield one
    one.channel.close()
    one.process.kill()
    one.process.wait()
    one.process.stdout.close()


def images(seed, number=3):
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 8, 1), np.uint8)


def softmax(pixels, weights):
    """What the classifier answers, computed without TensorFlow; configs/digits.py has the mean and deviation."""
    flat = (pixels.reshape(len(pixels), 64) / 255.0 - 0.305) / 0.376
    logits = flat @ weights[0].astype(float) + weights[1]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def assert_answer(probabilities, classes, scores, expected):
    order = np.argsort(-expected, 1)[:, :5]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), atol=1e-5)
    assert np.asarray(classes).tolist() == np.array(NAMES)[order].tolist()


def pngs(pixels):
    import tensorflow as tf

    return [tf.io.encode_png(image).numpy() for image in pixels]


def assert_rows(answer, expected):
    status, body = answer
    assert status == 200, body
    columns = [[row[name] for row in body["predictions"]] for name in ("probabilities", "classes", "scores")]
    assert_answer(*columns, expected)


def assert_message(response, expected):
    outputs = response.outputs
    assert list(outputs["probabilities"].tensor_shape.dim)[1].size == 10
    shapes = {name: [dim.size for dim in outputs[name].tensor_shape.dim] for name in outputs}
    values = {name: outputs[name].float_val or outputs[name].string_val for name in outputs}
    arrays = {name: np.reshape(values[name], shapes[name]) for name in outputs}
    classes = [[name.decode() for name in row] for row in arrays["classes"]]
    assert_answer(arrays["probabilities"], classes, arrays["scores"], expected)
    spec = response.model_spec
    assert (spec.name, spec.version.value) == ("digits", 3)


def test_rest_predicts_rows_columns_and_files(running, weights):
    pixels = images(0)
    expected = softmax(pixels, weights)
    for rows in (pixels.tolist(), [{"image": image} for image in pixels.tolist()]):
        assert_rows(running.rest({"instances": rows, "signature_name": "serving_default"}), expected)
    # curl calls what it posts a form; and a version may be named.
    body = json.dumps({"instances": pixels.tolist()}).encode()
    form = "application/x-www-form-urlencoded"
    assert_rows(running.rest(body, "/v1/models/digits/versions/3:predict", form), expected)
    for inputs in (pixels.tolist(), {"image": pixels.tolist()}):
        status, answer = running.rest({"inputs": inputs})
        assert status == 200, answer
        assert_answer(*(answer["outputs"][name] for name in ("probabilities", "classes", "scores")), expected)
    files = [{"b64": base64.b64encode(file).decode()} for file in pngs(pixels)]
    for rows in (files, [{"image_bytes": file} for file in files]):
        assert_rows(running.rest({"instances": rows, "signature_name": "serve_bytes"}), expected)
    status, answer = running.rest({"instances": pixels.tolist(), "signature_name": "serve_uncertainty"})
    assert status == 200, answer
    np.testing.assert_allclose([row["mean"] for row in answer["predictions"]], expected, atol=1e-5)
    entropy = -(expected * np.log(np.maximum(expected, 1e-300))).sum(1)
    np.testing.assert_allclose([row["entropy"] for row in answer["predictions"]], entropy, atol=1e-4)
    assert [row["disagreement"] for row in answer["predictions"]] == [0.0, 0.0, 0.0]


def test_grpc_predicts_pixels_and_files(running, weights):
    pixels = images(1, 4)
    expected = softmax(pixels, weights)
    response = running.grpc({"image": pixels})
    assert response.model_spec.signature_name == "serving_default"
    assert_message(response, expected)
    assert_message(running.grpc({"image_bytes": pngs(pixels)}, "serve_bytes", version=3), expected)
    only = running.grpc({"image": pixels[:1]}, output_filter=["scores"])
    assert list(only.outputs) == ["scores"]


def test_an_unexpected_failure_is_answered_in_json_too():
    class Broken:
        def find(self, name, version):
            raise MemoryError

    async def ask():
        async with TestClient(TestServer(server.rest_application(Broken(), 1000))) as client:
            answer = await client.get("/v1/models/digits")
            return answer.status, list(await answer.json())

    assert asyncio.run(ask()) == (500, ["error"])


def test_status_and_metadata(running):
    from tensorflow_serving.apis import get_model_metadata_pb2

    for path in ("/v1/models/digits", "/v1/models/digits/versions/3"):
        status, body = running.rest(None, path)
        assert status == 200
        ok = {"error_code": "OK", "error_message": ""}
        assert body == {"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": ok}]}
    status, body = running.rest(None, "/v1/models/digits/metadata")
    assert status == 200 and body["model_spec"]["version"] == "3"
    found = body["metadata"]["signature_def"]["signature_def"]
    assert found["serve_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    response = running.stub.GetModelMetadata(request, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    sizes = [dim.size for dim in signatures.signature_def["serving_default"].inputs["image"].tensor_shape.dim]
    assert sizes == [-1, 8, 8, 1]


def test_requests_at_once_get_each_its_own_answer(running, weights):
    def ask(seed):
        pixels = images(seed, seed % 4 + 1)
        if seed % 2:
            assert_message(running.grpc({"image": pixels}), softmax(pixels, weights))
        else:
            assert_rows(running.rest({"instances": pixels.tolist()}), softmax(pixels, weights))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))


def test_rest_refuses_what_does_not_fit_and_lives_on(running, weights):
    right = images(2, 1).tolist()
    shape = r"image: uint8 of shape \(N, 8, 8, 1\) expected. Received: "
    file = base64.b64encode(b"no image at all").decode()
    tall = base64.b64encode(pngs([np.zeros((9, 8, 1), np.uint8)])[0]).decode()
    as_bytes = {"signature_name": "serve_bytes"}
    text = r"image_bytes: string of shape \(N,\) expected. Received: "
    deep = b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    for body, message in [
        ({"instances": images(2, 1)[:, :7].tolist()}, shape + r"int64 of shape \(1, 7, 8, 1\)"),
        ({"instances": right[0]}, shape + r"int64 of shape \(8, 8, 1\)"),
        ({"instances": [[[[0.5]] * 8] * 8]}, shape + "float64"),
        ({"instances": [[[["0"]] * 8] * 8]}, shape + "text"),
        ({"instances": [[[[None]] * 8] * 8]}, shape + "text, null"),
        ({"instances": [[[[True]] * 8] * 8]}, shape + "bool"),
        ({"instances": [[[[256]] * 8] * 8]}, shape + "the number 256"),
        ({"instances": [[[[-1]] * 8] * 8]}, shape + "the number -1"),
        ({"instances": [[[[2**63]] * 8] * 8]}, shape + f"the number {2**63}"),
        ({"instances": [[[[10**400]] * 8] * 8]}, "JSON|format"),
        (b'{"instances": [[[[1e300]]]]}', shape + r"float64 of shape \(1, 1, 1, 1\)"),
        ({"instances": [*right, right[0][:5]]}, shape + "lists of unequal length"),
        ({"instances": []}, r"instances: a list of at least one expected. Received: \[\]"),
        ({"instances": 5}, "(?i)instances.*list"),
        ({"instances": {"image": right}}, "(?i)instances.*list"),
        ({"instances": [{"image": right[0]}, right[0]]}, "instances: the same inputs by name in each expected"),
        ({"instances": [{"picture": right[0]}]}, "'image' expected. Received: 'picture'"),
        ({"instances": [{}]}, "'image' expected. Received: none"),
        ({"inputs": {"image": right, "more": 1}}, "'image' expected. Received: 'image', 'more'"),
        ({"inputs": {"image": []}}, shape + r"float64 of shape \(0,\)"),
        ({"inputs": 7}, shape + r"int64 of shape \(\)"),
        (
            {"instances": right, "signature_name": "none"},
            "one of 'serve_bytes', 'serve_uncertainty', 'serving_default'",
        ),
        ({"instances": right, "signature_name": 3}, "signature_name: a string expected. Received: 3"),
        ({"instances": right, **as_bytes}, text),
        ({"instances": [{"b64": "***"}], **as_bytes}, text + "'b64' that is not base64"),
        ({"instances": [{"b64": 3}], **as_bytes}, "'image_bytes' expected. Received: 'b64'"),
        ({"instances": [5], **as_bytes}, text + "5"),
        ({"instances": [{"b64": file}], **as_bytes}, "image_bytes: .*PNG.* files expected. Received"),
        ({"instances": ["text"], **as_bytes}, "image_bytes: .*PNG.* files expected. Received"),
        ({"instances": [{"b64": tall}], **as_bytes}, r"image_bytes: images of 8 x 8 pixels expected. Received.*9 8"),
        ({"inputs": {"image_bytes": []}, **as_bytes}, r"image_bytes: one or more files expected. Received: \[?0"),
        ({}, "'instances' or 'inputs' expected. Received: none"),
        ({"instances": right, "inputs": right}, "'instances' or 'inputs' expected. Received: 'inputs', 'instances'"),
        ([1, 2], "a JSON object with 'instances' or 'inputs' expected. Received: list"),
        (b"", "JSON|format"),
        (b'{"instances": [', "JSON|format"),
        (b"\xff\xfe", "JSON|format"),
        (deep, "JSON|format"),
    ]:
        for content_type in ("application/json", "text/plain"):
            status, answer = running.rest(body, content_type=content_type)
            shown = body if len(str(body)) < 300 else str(body)[:300]
            assert status == 400 and list(answer) == ["error"], (shown, status, answer)
            assert re.search(message, answer["error"]), (shown, answer)
            assert "Traceback" not in answer["error"] and ".py" not in answer["error"], answer
    for path, code, message in [
        ("/v1/models/cats:predict", 404, "model: one of 'digits' expected. Received: 'cats'"),
        ("/v1/models/digits/versions/2:predict", 404, "model 'digits': version 3 expected. Received: 2"),
        ("/v1/models/digits:classify", 405, "Method Not Allowed: POST /v1/models/digits:classify"),
        ("/v2/repository/models/digits/unload", 404, "digits"),
    ]:
        status, answer = running.rest({"instances": right}, path)
        assert status == code and message in answer["error"], (path, status, answer)
    assert_rows(running.rest({"instances": right}), softmax(images(2, 1), weights))


def test_grpc_refuses_what_does_not_fit_and_lives_on(running, weights):
    import grpc
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    def message(dtype, *shape, **values):
        made = tensor_pb2.TensorProto(dtype=dtype, **values)
        for size in shape:
            made.tensor_shape.dim.add(size=size)
        return made

    right = images(3, 2)
    uint8, image_of = 4, (1, 8, 8, 1)
    shape = r"image: uint8 of shape \(N, 8, 8, 1\) expected. Received: "
    for arguments, code, said in [
        (({"image": right[:, :, :7]},), "INVALID_ARGUMENT", shape + r"uint8 of shape \(2, 8, 7, 1\)"),
        (({"image": right[0]},), "INVALID_ARGUMENT", shape + r"uint8 of shape \(8, 8, 1\)"),
        (({"image": right.astype("float32")},), "INVALID_ARGUMENT", shape + "float32"),
        (({"image": ["text"]},), "INVALID_ARGUMENT", shape + "string"),
        (({"image": right[:0]},), "INVALID_ARGUMENT", r"image: .*one or more images expected. Received.*0 8 8 1"),
        (({"image": message(999, *image_of)},), "INVALID_ARGUMENT", shape + "type 999"),
        (({"image": message(uint8, -1, 8, 8, 1, int_val=[1])},), "INVALID_ARGUMENT", shape + "uint8"),
        (({"image": message(uint8, *image_of, int_val=[300])},), "INVALID_ARGUMENT", "other values.*300"),
        (({"image": message(uint8, *image_of, tensor_content=b"few")},), "INVALID_ARGUMENT", "other values"),
        (({"image": message(uint8, *image_of)},), "INVALID_ARGUMENT", "without values"),
        (
            ({"image": message(uint8, 2**40, 8, 8, 1, int_val=[1])},),
            "INVALID_ARGUMENT",
            "image: at most 20 in a request expected. Received: 1099511627776",
        ),
        (({"image": tensor_pb2.TensorProto()},), "INVALID_ARGUMENT", shape),
        (({},), "INVALID_ARGUMENT", "'image' expected. Received: none"),
        (({f"\u20ac{i}": right for i in range(900)},), "INVALID_ARGUMENT", "'image' expected. Received: '\u20ac0', "),
        (({"image": right, "more": right},), "INVALID_ARGUMENT", "'image' expected. Received: 'image', 'more'"),
        (
            ({"image_bytes": [b"no image"]}, "serve_bytes"),
            "INVALID_ARGUMENT",
            "image_bytes: .*PNG.* expected. Received",
        ),
        (({"image_bytes": pngs(right)[0]}, "serve_bytes"), "INVALID_ARGUMENT", r"image_bytes: string of shape \(N,\)"),
        (({"image": right}, "", "digits", None, ["logits"]), "INVALID_ARGUMENT", "output_filter.*'logits'"),
        (({"image": right}, "none"), "FAILED_PRECONDITION", "signature_name: one of .*'serving_default' expected"),
        (({"image": right}, "", "cats"), "NOT_FOUND", "model: one of 'digits' expected. Received: 'cats'"),
        (({"image": right}, "", ""), "NOT_FOUND", "model: one of 'digits' expected. Received: ''"),
        (({"image": right}, "", "digits", 2), "NOT_FOUND", "version 3 expected. Received: 2"),
    ]:
        with pytest.raises(grpc.RpcError) as raised:
            running.grpc(*arguments)
        assert raised.value.code().name == code, (arguments, raised.value)
        assert re.search(said, raised.value.details()), (said, raised.value.details())
        assert "Traceback" not in raised.value.details() and ".py" not in raised.value.details()
    with pytest.raises(grpc.RpcError) as raised:
        running.stub.Classify(_classification(), timeout=60)
    assert raised.value.code().name == "UNIMPLEMENTED" and "Predict" in raised.value.details()
    from tfnas.serving import servable

    with pytest.raises(servable.RequestError, match=r"Received: shape \(1, 1048576, 1048576, 1\) in \d+ bytes"):
        one_for_all = message(uint8, 1, 2**20, 2**20, 1, int_val=[1])
        servable.from_message("image", tf.TensorSpec((None, None, None, 1), tf.uint8), one_for_all)
    # One value may stand for all, as tf.make_tensor_proto writes it.
    zeros = running.grpc({"image": tf.make_tensor_proto(0, tf.uint8, (2, 8, 8, 1))})
    assert_message(zeros, softmax(np.zeros((2, 8, 8, 1)), weights))
    assert_message(running.grpc({"image": right}), softmax(right, weights))


def _classification():
    from tensorflow_serving.apis import classification_pb2

    return classification_pb2.ClassificationRequest()


def test_large_requests_are_refused_before_they_take_memory(running, weights):
    import grpc

    def peak():  # of the server's memory, in bytes
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status_file.read_text())[1])

    status_file = pathlib.Path(f"/proc/{running.process.pid}/status")
    body = b'{"instances": [' + b" " * (MAX_BYTES - 14 - 2) + b"]}"
    assert len(body) == MAX_BYTES + 1
    status, answer = running.rest(body[:-3] + body[-2:])
    assert status == 400 and "instances: a list of at least one expected" in answer["error"]
    for path in ("/v1/models/digits:predict", "/v2/models/digits/infer"):
        status, answer = running.rest(body, path)
        words = f"body: at most {MAX_BYTES} bytes expected (--max_request_bytes). Received: {len(body)}"
        assert (status, answer) == (413, {"error": words})
    before = peak()
    # In pieces, with no length said before; 30 MB is thrown away, and of 300 MB the connection is closed.
    host, port = running.url.removeprefix("http://").split(":")
    for megabytes in (30, 300):
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        with contextlib.suppress(OSError) if megabytes > 32 else contextlib.nullcontext():
            pieces = (b" " * 10**6 for _ in range(megabytes))
            connection.request("POST", "/v1/models/digits:predict", pieces, encode_chunked=True)
            answer = connection.getresponse()
            said = json.load(answer)["error"]
            assert answer.status == 413 and said.endswith("Received: more")
        connection.close()
    for arguments, code, said in [
        (({"image": images(3, 20_000)},), "RESOURCE_EXHAUSTED", rf"larger than max \(\d+ vs. {MAX_BYTES}\)"),
        (({"image": images(3, MAX_IMAGES + 1)},), "INVALID_ARGUMENT", "image: at most 20 in a request .* Received: 21"),
        (({"image_bytes": [b""] * 21}, "serve_bytes"), "INVALID_ARGUMENT", "image_bytes: at most 20 in a request"),
    ]:
        with pytest.raises(grpc.RpcError) as raised:
            running.grpc(*arguments)
        assert raised.value.code().name == code and re.search(said, raised.value.details()), raised.value
    # Zeros, packed into a thousandth.
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.inputs["image"].tensor_content = bytes(300_000_000)
    with pytest.raises(grpc.RpcError) as raised:
        running.stub.Predict(request, timeout=60, compression=grpc.Compression.Gzip)
    assert raised.value.code().name == "UNIMPLEMENTED", raised.value
    packed = gzip.compress(bytes(300_000_000))
    headers = {"Content-Encoding": "gzip"}
    request = urllib.request.Request(f"{running.url}/v1/models/digits:predict", packed, headers)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=60)
    assert len(packed) < MAX_BYTES and raised.value.code == 413
    assert json.load(raised.value)["error"].endswith("Received: more")
    for rows, name in ((images(3, 21).tolist(), "image"), ([{"b64": ""}] * 21, "image_bytes")):
        body = {"instances": rows, "signature_name": "serve_bytes" if name == "image_bytes" else ""}
        status, answer = running.rest(body)
        words = f"{name}: at most 20 in a request expected. Received: 21"
        assert (status, answer) == (400, {"error": words})
    assert peak() - before < 100_000_000
    pixels = images(5, MAX_IMAGES)
    assert_rows(running.rest({"instances": pixels.tolist()}), softmax(pixels, weights))
    assert_message(running.grpc({"image": pixels}), softmax(pixels, weights))


def test_documented_clients_work(running, weights, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "serving.md").read_text()
    (client,) = re.findall(r"```python\n(import grpc\n.*?)```", text, re.DOTALL)
    assert "127.0.0.1:8500" in client
    exec(compile(client.replace("127.0.0.1:8500", running.grpc_place), "serving.md", "exec"), {})
    expected = softmax(np.zeros((2, 8, 8, 1)), weights)
    assert capsys.readouterr().out.count(f"b'{NAMES[expected[0].argmax()]}'") == 2
    (client,) = re.findall(r"```python\n(import json\nimport urllib.*?)```", text, re.DOTALL)
    assert "http://127.0.0.1:8501" in client
    exec(compile(client.replace("http://127.0.0.1:8501", running.url), "serving.md", "exec"), {})
    pixels = np.round(load_digits().images[:3, ..., None] * 255 / 16)
    expected = softmax(pixels, weights)
    assert capsys.readouterr().out.splitlines() == [
        f"{NAMES[row.argmax()]} with probability {row.max():.2f}; it is a {label}"
        for label, row in enumerate(expected)  # the first digits are 0, 1, 2
    ]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [block for block in blocks if block.startswith(("curl", "(printf"))]
    assert len(commands) == 2 and all("http://127.0.0.1:8501" in command for command in commands)
    sent = json.loads(re.search(r"'(.*)'", commands[0], re.DOTALL)[1])
    assert sent == {"instances": [{"image": pixels[0].tolist()}]}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit.png").write_bytes(pngs(images(4, 1))[0])
    for command in commands:
        done = subprocess.run(command.replace("http://127.0.0.1:8501", running.url), shell=True, capture_output=True)
        answer = json.loads(done.stdout)
        assert list(answer["predictions"][0]) == ["classes", "probabilities", "scores"], done
    assert_rows((200, answer), softmax(images(4, 1), weights))


def test_sigterm_ends_it_cleanly(running):
    """The last test of this server: it is gone afterwards."""
    assert running.process.poll() is None
    begin = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0 and time.monotonic() - begin < 15
    assert running.errors.read_text() == ""


def test_models_that_cannot_be_served_are_refused(tmp_path, exported):
    from tfnas.serving import servable

    with pytest.raises(UserError, match="^base_path: '.*/nowhere' is not there$"):
        servable.Model("digits", tmp_path / "nowhere", 9)
    (tmp_path / "damaged" / "1").mkdir(parents=True)
    (tmp_path / "damaged" / "1" / "saved_model.pb").write_text("not a model")
    with pytest.raises(UserError, match="damaged/1: a SavedModel expected. Received: OSError: .Cannot parse file"):
        servable.Model("digits", tmp_path / "damaged", 9)
    shutil.copytree(exported / "3", tmp_path / "copy" / "1")
    (tmp_path / "copy" / "1" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(100 * b"damaged")
    with pytest.raises(UserError, match="tf_serving_warmup_requests: requests that fit the model expected"):
        servable.Model("digits", tmp_path / "copy", 9)
