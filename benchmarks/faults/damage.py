"""Stages that read a damaged file."""

import collections
import contextlib
import importlib
import io
import random
import shutil
import traceback

from benchmarks.faults.reference import ROOT, SAVED_MODEL, STAGES, Reference, differences, evidence, keras
from tfnas import config
from tfnas.common.errors import UserError
from tfnas.runs import stage_table, workdir

# With this, stages read measured latencies too. They differ between runs; here they are copied.
_LATENCY = ["--config.search.latency=0.95"]
_CHECKPOINTS = ("**/*checkpoint*.npz", "**/*checkpoint*/*.npz")
_DATA = "tensorflow_datasets/digits/1.0.0"
# What a stage reads besides the files that it says it needs, and the data. An output of its own that is no longer as it
# was left is made again.
_ALSO_READ = {
    "search": [*(f"search/{pattern}" for pattern in _CHECKPOINTS), stage_table.LATENCIES],
    "sample": [stage_table.EVALUATIONS, f"{stage_table.SHARDS}/*", stage_table.LATENCY_BOUND],
    "retrain": [f"retrain/{pattern}" for pattern in _CHECKPOINTS],
    "export": ["export/**/*"],
}
_DAMAGES = ("truncated", "one bit flipped", "emptied", "another's content")


def damage(folder, number, seed):
    """Rows of the table, of so many files that are damaged."""
    rng = random.Random(seed)
    reference = Reference(folder, "damage-reference", _LATENCY, shards=True)
    settings = _config(reference)
    recorded = workdir.Workdir(reference.path).manifest().stages
    cases = [
        (stage, str(file.relative_to(reference.path)), how)
        for stage in STAGES
        for file in sorted({f for p in _read(stage, recorded) for f in reference.path.glob(p)})
        if file.is_file()
        for how in _DAMAGES
    ]
    rng.shuffle(cases)
    # Each file with each damage before any a second time, at another place.
    cases = (cases * (number // len(cases) + 1))[:number]
    counts = collections.Counter()
    path = folder / "damaged"
    for i, (stage, name, how) in enumerate(cases):
        shutil.copytree(reference.path, path)
        _spoil(path, name, how, rng)
        outputs = recorded[stage].outputs
        if not any(name == output or name.startswith(f"{output}/") for output in outputs):
            for output in map(path.joinpath, outputs):  # as if the stage had been killed at its end
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        outcome = _outcome(stage, settings, path, name, reference)
        good = outcome == "right" or outcome.startswith("reported")
        counts[_kind(name), "cases"] += 1
        counts[_kind(name), "good"] += good
        counts[outcome.partition(":")[0]] += 1
        message = outcome.replace(str(path), "")
        print(f"damage {i}: {stage}, {name}, {how}: {'' if good else 'WRONG: '}{message}", flush=True)
        shutil.rmtree(path)
    kinds = sorted({key[0] for key in counts if isinstance(key, tuple)})
    rows = [(f"damaged {kind}", counts[kind, "cases"], counts[kind, "good"]) for kind in kinds]
    total = f"damaged, in total ({counts['right']} end right, {counts['reported']} with one line)"
    return [*rows, (total, len(cases), sum(good for _, _, good in rows))]


def _read(stage, recorded):
    """Patterns of the files whose damage the stage is to notice."""
    needs = stage_table.STAGES[stage]
    data = [f"{_DATA}/*"] if "data" in needs.settings and stage != "report" else []
    also = [*_ALSO_READ.get(stage, []), *data, *recorded[stage].outputs]
    return [stage_table.MANIFEST, *needs.inputs, *needs.optional, *also]


def _config(reference):
    """Returns the config as the command line parses it."""
    values = config.load_file(ROOT / "configs" / "digits.py").to_dict()
    for setting in reference.settings[1:]:
        key, _, text = setting.removeprefix("--config.").partition("=")
        section, name = key.split(".")
        values[section][name] = config.parse_value(key, text)
    return config.from_config_dict(values)


def _spoil(path, name, how, rng):
    """Damages one file of a working directory."""
    file = path / name
    content = file.read_bytes()
    if how == "truncated":
        content = content[: rng.randrange(len(content))]
    elif how == "one bit flipped":
        content = bytearray(content)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "emptied":
        content = b""
    else:
        others = sorted(f for f in path.rglob(f"*{file.suffix}") if f.is_file() and f.read_bytes() != content)
        content = rng.choice(others or sorted(f for f in path.rglob("*.json"))).read_bytes()
    file.write_bytes(content)


def _outcome(stage, settings, path, name, reference):
    """'right', 'reported: MESSAGE', or what is wrong."""
    try:
        keras.backend.clear_session()
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"tfnas.stages.{stage}").run(settings, path)
    except UserError as error:
        # Of a data set the folder is what is to be deleted.
        named = str(path / (_DATA if name.startswith(_DATA) else name)) in str(error)
        one_line = "\n" not in str(error)
        return f"{'reported' if named and one_line else 'not named, or not in one line'}: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}; {traceback.format_exc().splitlines()[-4:-1]}"
    wrong = differences(evidence(path, [stage]), reference.evidence)
    return f"wrong result: {', '.join(wrong)}" if wrong else "right"


def _kind(name):
    """Returns the name of a row of the table."""
    if name.startswith(SAVED_MODEL):
        return SAVED_MODEL
    if "checkpoint" in name:
        return f"{name.partition('/')[0]}/ checkpoint"
    return "sample/shards" if name.startswith("sample/shards/") else name
