"""A served model under load, with requests among the others that are too large or damaged."""

import collections
import concurrent.futures
import http.client
import json
import pathlib
import random
import re
import subprocess
import sys
import time

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from benchmarks.faults.reference import ROOT, tf
from tfnas import config, supernets
from tfnas.data import pipeline
from tfnas.exporting import savedmodel
from tfnas.tasks import network_inputs

_MAX_BYTES, _MAX_IMAGES, _NUM_IMAGES = 1_000_000, 20, 200
_PREDICT = "/v1/models/digits:predict"


def load(folder, minutes, seed):
    """Rows of the table, of the requests of five clients at once."""
    images = np.random.default_rng(seed).integers(0, 256, (_NUM_IMAGES, 8, 8, 1), np.uint8)
    _export(folder / "served" / "1")
    loaded = tf.saved_model.load(folder / "served" / "1")
    expected = loaded.signatures["serving_default"](image=images)["probabilities"].numpy()
    command = [sys.executable, "-m", "tfnas.serving.server", f"--model_base_path={folder / 'served'}"]
    command += ["--model_name=digits", "--port=0", "--rest_api_port=0"]
    command += [f"--max_request_bytes={_MAX_BYTES}", f"--max_images={_MAX_IMAGES}"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        rest, grpc_place = re.search(r"REST http://(\S+), gRPC (\S+)", server.stdout.readline()).groups()
        stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(grpc_place))
        end = time.monotonic() + 60 * minutes
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            clients = [_rest(rest), _rest(rest), _grpc(stub), _grpc(stub)]
            futures = [pool.submit(_ask, client, i, end, images, expected) for i, client in enumerate(clients)]
            futures.append(pool.submit(_abuse, rest, stub, random.Random(seed), end, images))
            time.sleep(6 * minutes)  # a tenth, until every kind of request has been seen
            before = _memory(server)
            found = [future.result() for future in futures]
            grown = _memory(server) - before
    finally:
        server.terminate()
        code = server.wait()
    answered, right = (sum(numbers) for numbers in zip(*found[:-1], strict=True))
    print(
        f"load: the server's memory grew by {grown / 1e6:.1f} MB in the last nine tenths, exit code {code}", flush=True
    )
    return [
        (f"requests to a served model, {minutes:g} minutes, four clients: answered right", answered, right),
        ("those of a fifth client, too large, of too many images, or cut: refused", *found[-1]),
        (f"its memory grew by less than 50 MB ({grown / 1e6:.1f} MB)", 1, int(grown < 5e7)),
        ("it ended with code 0", 1, int(code == 0)),
    ]


def _export(path):
    network = supernets.multi_branch_resnet(8, 1, input_shape=(8, 8, 1))
    nothing = tf.data.Dataset.range(0)
    labels = tuple(f"digit {i}" for i in range(10))
    savedmodel.write(
        network,
        pipeline.Splits(nothing, nothing, nothing, {}, network_inputs.one((8, 8, 1)), labels),
        config.Config(),
        path,
    )


def _memory(server):
    """Resident memory of a process, in bytes."""
    return 1024 * int(re.search(r"VmRSS:\s*(\d+) kB", pathlib.Path(f"/proc/{server.pid}/status").read_text())[1])


def _post(connection, body):
    """Status and JSON of a request."""
    connection.request("POST", _PREDICT, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def _rest(place):
    """A client with a connection of its own: from images to probabilities."""
    connection = http.client.HTTPConnection(place, timeout=120)

    def ask(images):
        status, answer = _post(connection, json.dumps({"instances": images.tolist()}))
        return [row["probabilities"] for row in answer["predictions"]] if status == 200 else f"{status}: {answer}"

    return ask


def _message(images):
    request = predict_pb2.PredictRequest(inputs={"image": tf.make_tensor_proto(images)})
    request.model_spec.name = "digits"
    return request


def _grpc(stub):
    return lambda images: tf.make_ndarray(stub.Predict(_message(images), timeout=120).outputs["probabilities"])


def _ask(client, seed, end, images, expected):
    """Sends images until the end; returns the numbers of requests, and of right answers."""
    rng = random.Random(seed)
    counts = collections.Counter()
    while time.monotonic() < end:
        start = rng.randrange(_NUM_IMAGES - _MAX_IMAGES)
        rows = slice(start, start + rng.randint(1, _MAX_IMAGES))
        try:
            found = client(images[rows])
            right = not isinstance(found, str) and np.allclose(found, expected[rows], atol=1e-5)
        except (OSError, grpc.RpcError, http.client.HTTPException) as error:
            found, right = error, False
        counts["right"] += right
        counts["answered"] += 1
        if not right:
            print(f"load: WRONG: {str(found)[:300]}", flush=True)
    return counts["answered"], counts["right"]


def _abuse(place, stub, rng, end, images):
    """Sends what must be refused until the end; returns the numbers of requests, and of those that were refused."""
    bodies = {
        413: b'{"instances": [' + b" " * _MAX_BYTES + b"]}",
        400: json.dumps({"instances": images[: _MAX_IMAGES + 1].tolist()}).encode(),
    }
    counts = collections.Counter()
    while time.monotonic() < end:
        case = rng.choice(["too large", "too many", "cut", "too large", "too many"])
        over_rest = case == "cut" or rng.random() < 0.5
        if over_rest:
            expected = 413 if case == "too large" else 400
            body = bodies[expected] if case != "cut" else bodies[400][: rng.randrange(1, 2_000)]
            connection = http.client.HTTPConnection(place, timeout=120)
            found, answer = _post(connection, body)
            connection.close()
        else:
            expected = "RESOURCE_EXHAUSTED" if case == "too large" else "INVALID_ARGUMENT"
            sent = np.concatenate([images] * 100) if case == "too large" else images[: _MAX_IMAGES + 1]
            try:
                found = answer = str(stub.Predict(_message(sent), timeout=120))[:100]
            except grpc.RpcError as error:
                found, answer = error.code().name, error.details()
        counts["refused"] += found == expected
        counts["sent"] += 1
        if found != expected:
            print(f"load: WRONG: {case}: {found}, {expected} expected: {str(answer)[:300]}", flush=True)
        time.sleep(rng.uniform(0, 0.2))
    return counts["sent"], counts["refused"]
