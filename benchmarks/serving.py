"""Requests per second and latency of supernets against subnets of them, in one server under the same load.

    .venv/bin/python benchmarks/serving.py [--rounds=7] [--seconds=1.5] [--clients=2]

All networks are exported and served by one process of `tfnas.serving.server`; the clients run on the same machine,
each with a connection of its own, and send the next request when the last is answered. In every round each network
gets the same load once, in an order that turns, so that a drift of the machine's speed falls on all alike; ratios are
of one round, and the table has their median and range. 'in process' calls the signature without any server, from one
thread.

A subnet is sampled from the posterior of the untrained supernet, tilted to a share of its multiply-adds, and cut.
Weights have no part in speed, so nothing is trained.
"""

import concurrent.futures
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import tfnas
from tfnas import config, supernets
from tfnas.data import pipeline
from tfnas.exporting import savedmodel
from tfnas.graph.channels import Graph
from tfnas.tasks import network_inputs

_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each network gets the load.")
_SECONDS = flags.DEFINE_float("seconds", 1.5, "How long, each time.")
_CLIENTS = flags.DEFINE_integer("clients", 2, "How many requests are under way at any time.")
_SHARES = flags.DEFINE_list("shares", ["0.5", "0.3"], "Of the supernet's multiply-adds, one subnet each.")

# Builder, images in a request. The first computes for longer than a request takes to be read, the second does not.
_SIZES = {
    "SupNet-M, width 32, one block per stage, 32 x 32 x 3": (lambda: supernets.multi_branch_resnet(32, 1), 16),
    "digits network, 8 x 8 x 1": (lambda: supernets.multi_branch_resnet(8, 1, input_shape=(8, 8, 1)), 1),
}


def _networks(build):
    """(title, network, cost) of the supernet without gates and of its subnets."""
    model = build()
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    full = tfnas.cost(supernet.graph)
    yield "full", model, full
    posterior = supernet.posterior()
    total = posterior.total_cost("multiply_adds")
    for share in map(float, _SHARES.value):
        # Tilting counts kernels with all their outputs; unused outputs are dropped as well, so subnets cost less.
        tilted = [posterior.tilt(multiply_adds=min(more * share, 0.95) * total) for more in (1.0, 1.15, 1.3)]
        sampled = [candidate for each in tilted for candidate in each.sample(60, seed=0)]
        found = [candidate for candidate in sampled if supernet.graph.flow(candidate).reaches_outputs()]
        wanted = share * full.multiply_adds
        costs = [tfnas.cost(supernet.graph, candidate).multiply_adds for candidate in found]
        network = tfnas.subnet(supernet, found[int(np.argmin(np.abs(np.array(costs) - wanted)))])
        yield "subnet", network, tfnas.cost(Graph(network))


def _export(network, folder):
    shape = tuple(network.input_shape[1:])
    nothing = tf.data.Dataset.range(0)
    labels = tuple(f"class {i}" for i in range(network.output_shape[-1]))
    splits = pipeline.Splits(nothing, nothing, nothing, {}, network_inputs.one(shape), labels)
    savedmodel.write(network, splits, config.Config(), folder / "1")


class _Rest:
    """A client with one connection; a call is one request."""

    def __init__(self, place, name, images):
        self.connection = http.client.HTTPConnection(place)
        self.path = f"/v1/models/{name}:predict"
        self.body = json.dumps({"instances": images.tolist()})

    def __call__(self):
        self.connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(body.decode())


class _Grpc:
    def __init__(self, place, name, images):
        # By default, channels to the same address share a connection.
        self.channel = grpc.insecure_channel(place, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.request = predict_pb2.PredictRequest(inputs={"image": tf.make_tensor_proto(images)})
        self.request.model_spec.name = name

    def __call__(self):
        self.stub.Predict(self.request)


def _load(clients):
    """Seconds that every request took, and requests per second, of all clients together."""
    end = time.perf_counter() + _SECONDS.value

    def ask(client):
        taken, now = [], time.perf_counter()
        while now < end or not taken:
            begin = now
            client()
            now = time.perf_counter()
            taken.append(now - begin)
        return taken

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        taken = [seconds for each in pool.map(ask, clients) for seconds in each]
    return taken, len(taken) / (time.perf_counter() - begin)


def _compare(title, protocol, networks, clients, images):
    """One row a network: `clients` by the network's name."""
    taken = {name: [] for name in networks}
    rates = {name: [] for name in networks}
    for name in networks:  # what is first: tracing, connections
        for client in clients[name]:
            client()
    names = list(networks)
    for i in range(_ROUNDS.value):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds, rate = _load(clients[name])
            taken[name] += seconds
            rates[name].append(rate)
    _, full = networks[names[0]]
    for name, (shown, cost) in networks.items():
        ratios = [rate / first for rate, first in zip(rates[name], rates[names[0]], strict=True)]
        p50, p95 = np.percentile(1e3 * np.array(taken[name]), [50, 95])
        cells = [title, str(len(images)), protocol, shown, f"{cost.multiply_adds / full.multiply_adds:.2f}"]
        cells += [f"{cost.parameters / full.parameters:.2f}", f"{statistics.median(rates[name]):,.1f}"]
        cells += [f"{p50:.1f}", f"{p95:.1f}", f"{statistics.median(ratios):.2f}"]
        cells += [f"{min(ratios):.2f} to {max(ratios):.2f}" if name != names[0] else ""]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(_):
    """Prints one table."""
    logging.set_verbosity(logging.WARNING)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        sizes, lines = [], []
        for title, (build, number) in _SIZES.items():
            networks = {}
            for shown, network, cost in _networks(build):
                name = f"model{len(lines)}"
                _export(network, folder / name)
                lines.append(f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}')
                networks[name] = (shown, cost)
            sizes.append((title, networks, rng.integers(0, 256, (number, *network.input_shape[1:]), np.uint8)))
        (folder / "models.config").write_text(f"model_config_list {{ {' '.join(lines)} }}")
        command = [sys.executable, "-m", "tfnas.serving.server", f"--model_config_file={folder / 'models.config'}"]
        server = subprocess.Popen([*command, "--port=0", "--rest_api_port=0"], stdout=subprocess.PIPE, text=True)
        try:
            ready = re.search(r"REST http://(\S+), gRPC (\S+)", server.stdout.readline())
            print(
                "| supernet | images per request | protocol | network | multiply-adds | parameters "
                "| requests per second | p50, ms | p95, ms | requests relative to full | range over rounds |"
            )
            print("|---|---|---|---|---|---|---|---|---|---|---|")
            for title, networks, images in sizes:
                for protocol, client, at in (("gRPC", _Grpc, ready[2]), ("REST", _Rest, ready[1])):
                    clients = {n: [client(at, n, images) for _ in range(_CLIENTS.value)] for n in networks}
                    _compare(title, protocol, networks, clients, images)
                clients = {name: [_in_process(folder / name / "1", images)] for name in networks}
                _compare(title, "in process", networks, clients, images)
        finally:
            server.terminate()
            server.wait()


def _in_process(path, images):
    loaded = tf.saved_model.load(path)
    signature, image = loaded.signatures["serving_default"], tf.constant(images)

    def call(_=loaded):  # the signature alone does not keep the model's variables
        return signature(image=image)["probabilities"].numpy()

    return call


if __name__ == "__main__":
    app.run(main)
