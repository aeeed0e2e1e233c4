"""Which Keras models work: gated by bounds, cut, counted, ranked, saved and loaded, one record a model.

    .venv/bin/python -m benchmarks.coverage [--models=FILES] [--workdir=build/coverage] [--only=PATTERNS]
        [--record=docs/results/records/models.json]

Models: every builder of keras.applications, at the smallest images it takes, with random weights; those of tests; and
those of files whose `MODELS` maps names to builders. Streams may vanish too. Two architectures of each model, which
keep 70 % and 30 % of the units, are cut. A network is exact if its outputs differ from the supernet's under the same
masks by at most 1e-4 of the largest, for the engine that ranks candidates likewise, if its parameters are as predicted,
and if its file gives the same outputs. Where float32 makes more of rounding, all but the engine, which computes in
float32, is compared again in float64, with the same weights; the engine then differs from float64 by at most ten times
what the supernet in float32 does. What a model makes of random numbers of its own is not compared.

The outcome is 'exact' if units have at least half of the parameters, in layers some of whose channels may vanish;
'partly' if fewer, or if the network cannot be saved because a layer that is left whole cannot; 'whole' if nothing may
vanish; 'refused' with the message; 'wrong'; or 'crashed'. A second run continues, and prints the table; what another
commit measured is measured again. --record=FILE keeps the table.
"""

import fnmatch
import gc
import importlib.util
import json
import pathlib
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas.common.errors import UserError
from tfnas.graph.channels import Graph
from tfnas.ranking.engine import Engine

_TOLERANCE = 1e-4
_ROUNDINGS = 10  # how much more of rounding the engine may make than the supernet in float32
_HALF = 0.5
_SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
_CLASSES = 10
OUTCOMES = ("exact", "partly", "whole", "refused", "wrong", "crashed")


def _applications():
    """Builders of keras.applications by name."""
    names = [name for name in dir(keras.applications) if name[0].isupper()]

    def build(name):
        size = _SMALLEST.get(name, 32)
        shape = (size, size, 3)
        options = {"weights": None, "input_shape": shape, "classes": _CLASSES, "classifier_activation": None}
        return lambda: getattr(keras.applications, name)(**options)

    return {f"applications/{name}": build(name) for name in names}


def _of_tests():
    """Models that tests are of."""
    root = pathlib.Path(__file__).parents[1]
    sys.path.insert(0, str(root / "tests"))
    import composites
    import composites_of_numbers
    import model_kinds
    import networks

    kinds = ("sequential", "built", "nested", "sequential_of_models")
    found = {name: lambda name=name: getattr(model_kinds, name)((8, 8, 1), 3) for name in kinds}
    found |= {name: build for name, (build, _) in (composites.MODELS | composites_of_numbers.MODELS).items()}
    found |= networks.MODELS
    return {f"tests/{name}": build for name, build in found.items()}


def _of_file(path):
    """Models of a user's file."""
    stem = pathlib.Path(path).stem
    spec = importlib.util.spec_from_file_location(f"{stem}_of_coverage", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return {f"{stem}/{name}": build for name, build in module.MODELS.items()}


def _randomized(model, rng):
    """Statistics, scales and offsets that no initializer gives."""
    for variable in model.variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.3, 2.0, variable.shape))
        elif variable.path.endswith("gamma"):
            variable.assign(rng.normal(1.0, 0.2, variable.shape))
        elif variable.path.rsplit("/", 1)[-1] in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.2, variable.shape))


def _data(model, rng):
    """Two examples."""

    def array(tensor):
        shape = (2, *(size or 16 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return rng.integers(0, 10, shape).astype(tensor.dtype)
        return rng.normal(size=shape).astype("float32")

    arrays = [array(tensor) for tensor in model.inputs]
    return keras.tree.pack_sequence_as(model._inputs_struct, arrays)


def _outputs(network, data):
    return [np.asarray(x) for x in keras.tree.flatten(network(data, training=False))]


def _difference(found, expected, fixed):
    """Largest difference of the outputs that are not random, relative to the largest of each."""
    pairs = [(g, e) for g, e, is_fixed in zip(found, expected, fixed, strict=True) if is_fixed]
    return max((float(np.abs(g - e).max() / max(np.abs(e).max(), 1e-6)) for g, e in pairs), default=0.0)


def _again(model):
    """A model read from its file; why not, if Keras cannot write or read it."""
    own = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    own = {name: kind for name, kind in own.items() if not kind.__module__.startswith("keras.")}
    with tempfile.TemporaryDirectory() as folder, keras.saving.custom_object_scope(own):
        try:
            model.save(pathlib.Path(folder) / "model.keras")
            again = keras.models.load_model(pathlib.Path(folder) / "model.keras", safe_mode=False)
            again(_data(Graph(again).model, np.random.default_rng(0)), training=False)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return again


def _counted(model, graph, data):
    """Number of parameters that the outputs depend on, and of all that layers left whole have."""
    untraced = [node.layer for node in graph.nodes if node.name in graph.untraced]
    kept = {id(v) for layer in untraced for v in layer.trainable_variables}
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(data, training=False))
    gradients = tape.gradient(outputs, [v.value for v in model.trainable_variables])
    pairs = zip(model.trainable_variables, gradients, strict=True)
    return sum(int(np.prod(v.shape)) for v, gradient in pairs if gradient is not None or id(v) in kept)


def share_in_units(graph):
    """Share of the parameters that layers have some of whose channels may vanish."""
    form = graph.form
    sizes = [group.size for group in form.groups]
    widths = [width.pinned + sum(count * sizes[g] for g, count in width.members) for width in form.widths]
    numbers, some = dict.fromkeys((term.name for term in form.terms["parameters"]), 0.0), set()
    for term in form.terms["parameters"]:
        numbers[term.name] += term.coefficient * widths[term.first] * widths[term.second]
        if form.widths[term.first].members or form.widths[term.second].members:
            some.add(term.name)
    return sum(numbers[name] for name in some) / sum(numbers.values())


def measure(build, weights=None):
    """Builds, gates and cuts one model; returns its record.

    In the record are also the model's weights, and the last outputs of the supernet under a mask.
    """
    rng = np.random.default_rng(0)
    model = build()
    _randomized(model, rng)
    given = Graph(model)
    data = _data(given.model, rng)
    if weights is not None:
        _outputs(model, data)  # one that is built by its first call
        model.set_weights(weights)
    once, twice = _outputs(model, data), _outputs(model, data)
    fixed = [np.array_equal(a, b) for a, b in zip(once, twice, strict=True)]
    bound = {"parameters": 0.99, "steps": 10, "num_examples": 10, "streams": True}
    supernet = tfnas.gate(model, **bound)
    graph = supernet.graph
    record = {
        "parameters": int(graph.form.full("parameters")),
        "counted": _counted(model, given, data),
        "share": share_in_units(graph),
        "left_whole": given.untraced,
        "gated": _difference(_outputs(supernet, data), once, fixed),
        "cut": 0.0,
        "built": True,
        "weights": model.get_weights(),
    }
    for keep in (0.7, 0.3):
        architecture = graph.closed({g.name: rng.random(g.size) < keep for g in graph.groups})
        cut = tfnas.subnet(supernet, architecture)
        supernet.set_architecture(architecture)
        expected = _outputs(supernet, data)
        record["cut"] = max(record["cut"], _difference(_outputs(cut, data), expected, fixed))
        kept = np.array([[architecture[group.name].sum() for group in graph.groups]])
        (predicted,) = graph.form.counts(kept, ["parameters"])["parameters"]
        record["built"] &= int(predicted) == sum(int(np.prod(v.shape)) for v in cut.trainable_variables)
    supernet.compile("sgd", loss="mse")
    labels = keras.tree.pack_sequence_as(model(data, training=False), once)
    engine = keras.tree.flatten(Engine(supernet, (data, labels)).outputs(architecture))
    record["engine"] = _difference([np.asarray(x) for x in engine], expected, fixed)
    record["expected"] = [x for x, is_fixed in zip(expected, fixed, strict=True) if is_fixed]
    again = _again(cut)
    if not isinstance(again, str):
        record["loaded"] = _difference(_outputs(again, data), _outputs(cut, data), fixed)
    elif isinstance(_again(model), str):
        record["remark"] = "Keras does not save and load the model itself either"
    else:
        record["unsaved"] = again
        record["remark"] = f"cannot be saved and loaded: {again}"
    return _judged(record)


def _more_precisely(build, record):
    """The record with what float64 gives, for networks that make much of the rounding of float32."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        found = measure(build, record["weights"])
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    rounding = _difference(record["expected"], found["expected"], [True] * len(found["expected"]))
    remark = f"in float64; {_largest(record):.1e} in float32; the smaller network by {rounding:.1e}"
    if found["engine"] <= _ROUNDINGS * rounding:
        del found["engine"]
    return _judged({**found, "remark": remark})


def _largest(record):
    """The largest difference that was measured."""
    return max(record[key] for key in ("gated", "cut", "engine", "loaded") if key in record)


def _judged(record):
    """The record with its outcome."""
    right = _largest(record) <= _TOLERANCE and record["built"] and record["parameters"] == record["counted"]
    exact = record["share"] >= _HALF and "unsaved" not in record
    return {**record, "outcome": "wrong" if not right else "exact" if exact else "partly"}


def _measured(build):
    started = time.perf_counter()
    try:
        record = measure(build)
        if record["built"] and _largest(record) > _TOLERANCE:
            record = _more_precisely(build, record)
        del record["weights"], record["expected"]
    except UserError as error:
        nothing = "no channels that may vanish" in str(error)
        record = {"outcome": "whole" if nothing else "refused", "reason": str(error)}
    except Exception as error:
        (line,) = str(error).strip().splitlines()[:1] or [""]  # behind it TensorFlow names files of this machine
        record = {"outcome": "crashed", "reason": f"{type(error).__name__}: {line[:300]}"}
    return {**record, "seconds": time.perf_counter() - started}


def _cells(name, record):
    numbers = ["-"] * 4
    if "cut" in record:
        largest = _largest(record)
        built = "as predicted" if record["built"] and record["parameters"] == record["counted"] else "other"
        numbers = [f"{record['parameters']:,}", f"{100 * record['share']:.0f} %", f"{largest:.1e}", built]
    why = "; ".join(f"{layer}: {why}" for layer, why in list(record.get("left_whole", {}).items())[:2])
    why = record.get("remark", why)
    cells = [name, record["outcome"], *numbers, f"{record['seconds']:.0f}", record.get("reason", why)]
    return [cell.replace("|", "¦") for cell in cells]


def _define_flags():
    # Not at import: the tests import this module beside the command line, which has a flag of the same name.
    flags.DEFINE_list("models", [], "Python files whose MODELS maps names to builders.")
    flags.DEFINE_string("workdir", "build/coverage", "Folder of the records.")
    flags.DEFINE_list("only", "*", "Glob patterns of the models' names: 'applications/*', 'tests/*', 'FILE/*'.")


def _found(path, commit):
    """Record of a model that this commit has measured; None without one."""
    record = json.loads(path.read_text()) if path.exists() else {}
    return record if record.get("commit") == commit else None


def main(_):
    """Measures what has no record yet, and prints the table."""
    folder, commit = pathlib.Path(flags.FLAGS.workdir), records.commit()
    folder.mkdir(parents=True, exist_ok=True)
    models = _applications() | _of_tests()
    for path in flags.FLAGS.models:
        models |= _of_file(path)
    found = {}
    for name, build in models.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in flags.FLAGS.only):
            continue
        path = folder / f"{name.replace('/', '_')}.json"
        if (record := _found(path, commit)) is None:
            keras.utils.clear_session()
            gc.collect()
            record = {**_measured(build), "commit": commit}
            path.write_text(json.dumps(record))
            print(f"{name}: {record['outcome']}, {record['seconds']:.0f} s", file=sys.stderr, flush=True)
        found[name] = record
    table = records.Record(records.flag().value)
    columns = ("model", "outcome", "parameters", "in units", "largest difference", "parameters built", "seconds")
    table.heading(*columns, "remarks")
    for name, record in found.items():
        table.row(*_cells(name, record))
    counts = {outcome: sum(record["outcome"] == outcome for record in found.values()) for outcome in OUTCOMES}
    table.keep(models=len(found), outcomes={outcome: number for outcome, number in counts.items() if number})


if __name__ == "__main__":
    _define_flags()
    records.flag()
    app.run(main)
