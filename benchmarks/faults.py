"""What becomes of a run that is killed, runs out of disk, or finds its files damaged.

    .venv/bin/python benchmarks/faults.py [--parts=kills,disk,damage] [--kills=50] [--sizes=4] [--damage=200] [--seed=0]

A small run on the bundled digits, undisturbed, is the reference. Then:

- kills: `tfnas run`, killed with SIGKILL, its whole process group, at a moment drawn uniformly from the run's wall
  time, start-up of every stage included; the same command again, three times in ten killed once more. Counted is whose
  posterior, history, candidates, ranking, front and architecture equal the reference's byte for byte and whose
  SavedModel predicts the same bits, with the same files in the folder. What stands before the stage that is killed is
  the reference's, so that it need not be computed each time.
- disk: every stage on a tmpfs that is too small by various sizes, in a folder that is read-only, and with a full folder
  for temporary files. Expected is exit code 1 and one line that names a file and the reason; the results of stages
  before, and every evaluation made, are still there; and with more space the same command ends as the reference. Needs
  Linux and `unshare`; mounts are in a namespace of their own, which ends with this process.
- damage: every kind of file that a stage reads, truncated, with one bit flipped, emptied, or with the content of
  another file of the run; then the stage. Expected is the reference's result, or one line that names the file.
"""

import collections
import concurrent.futures
import contextlib
import functools
import importlib.util
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from absl import app, flags, logging

from tfnas import config, data, terminal, workdir
from tfnas.errors import UserError

tf = terminal.load_tensorflow()
import keras  # noqa: E402  after TensorFlow, whose greeting is held back

import tfnas.supernet  # noqa: E402, F401  knows the layers of a supernet's file

ROOT = pathlib.Path(__file__).resolve().parents[1]

_PARTS = flags.DEFINE_list("parts", ["kills", "disk", "damage"], "Which of the three.")
_KILLS = flags.DEFINE_integer("kills", 50, "Runs that are killed.")
_SIZES = flags.DEFINE_integer("sizes", 4, "Sizes of the disk on which each stage runs out of space.")
_DAMAGE = flags.DEFINE_integer("damage", 200, "Files that are damaged.")
_PARALLEL = flags.DEFINE_integer("parallel", 2, "Runs side by side.")
_SEED = flags.DEFINE_integer("seed", 0, "Of moments, sizes and damages.")

_AGAIN = 0.3  # how often a run that goes on is killed once more
_STAGES = ("search", "sample", "retrain", "export", "report")
_SETTINGS = [
    f"--config={ROOT / 'configs' / 'digits.py'}",
    "--config.data.train=train[:500]",
    "--config.supernet.width=4",
    "--config.supernet.stem_width=4",
    "--config.search.epochs=3",
    "--config.search.learning_rate=0.2",
    "--config.sample.num_candidates=16",
    "--config.sample.num_random=4",
    "--config.sample.num_tested=4",
    "--config.sample.budgets=0.6",
    "--config.retrain.epochs=2",
]
# With these a stage reads measured latencies too, which no two runs have alike: for damage, where they are copied.
_LATENCY = ["--config.sample.resource=latency"]
# What is to be equal, byte for byte, by the stage that writes it. Of the rest only times and measured seconds may
# differ, or it is compared by its content.
_EXACT = {
    "search": ("search/history.jsonl", "posterior.json"),
    "sample": ("sample/candidates.jsonl", "sample/ranking.json", "sample/front.json", "architecture.json"),
    "retrain": ("retrain/architecture.json",),
    "export": ("export/digits/architecture.json", "export/digits/labels.txt"),
    "report": (),
}
_MODELS = {"search": "search/supernet.keras", "retrain": "retrain/subnet.keras"}
_SAVED_MODEL = "export/digits/1"
_TENSORFLOW = threading.Lock()  # one network at a time is loaded in this process
_CHECKPOINTS = ("**/*checkpoint*.npz", "**/*checkpoint*/*.npz")


class Reference:
    """The undisturbed run.

    Attributes:
        path: its working directory.
        before: by stage, the working directory as it was before.
        seconds: by stage, wall time of its process.
    """

    def __init__(self, folder, name, settings=(), shards=False):
        self.settings = [*_SETTINGS, *settings]
        self.path = folder / name
        self.before, self.seconds = {}, {}
        for stage in _STAGES:
            self.before[stage] = folder / f"{name}-before-{stage}"
            if self.path.exists():
                shutil.copytree(self.path, self.before[stage])
            else:
                self.before[stage].mkdir()
            if stage == "sample" and shards:
                for part in ("1/2", "2/2"):
                    self._run("sample", f"--shard={part}")
            start = time.monotonic()
            self._run(stage)
            self.seconds[stage] = time.monotonic() - start

    @functools.cached_property
    def evidence(self):
        """What others' results are to be equal to."""
        return evidence(self.path)

    def _run(self, stage, *more):
        done = subprocess.run(
            command(stage, self.path, *self.settings, *more), cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{stage} of the undisturbed run failed:\n{done.stderr}")

    def total(self):
        """Seconds of all stages."""
        return sum(self.seconds.values())


def command(stage, path, *settings):
    """What a user would type."""
    return [sys.executable, "-m", "tfnas.main", stage, f"--workdir={path}", *settings]


@functools.cache
def images():
    """The validation images, as they lie: uint8."""
    with tempfile.TemporaryDirectory() as folder:
        splits = data.load(config.Data(), pathlib.Path(folder))
        return tf.stack([image for image, _ in splits.validation])


def predictions(path):
    """Bits of the probabilities and labels that a SavedModel answers the validation images with."""
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](image=images())
    return answer["probabilities"].numpy().tobytes(), answer["classes"].numpy().tolist()


def weights(path):
    """Every weight of a .keras file, as bytes."""
    return [weight.tobytes() for weight in keras.models.load_model(path).get_weights()]


def results(path):
    """retrain/results.json without what is measured in seconds."""
    found = json.loads((path / "retrain/results.json").read_text())
    found.pop("latency_spread", None)
    for row in found["rows"]:
        row.pop("latency_seconds", None)
    return found


def evidence(path, stages=_STAGES):
    """By name, all that is to be equal of the stages' results."""
    found = {}
    for stage in stages:
        found |= {name: (path / name).read_bytes() for name in _EXACT[stage]}
        if stage in _MODELS:
            found[_MODELS[stage]] = weights(path / _MODELS[stage])
        if stage == "retrain":
            found["retrain/results.json"] = results(path)
        if stage == "export":
            found["predictions"] = predictions(path / _SAVED_MODEL)
    return found


def differences(found, expected):
    """Names of what is not equal."""
    return [name for name, value in found.items() if value != expected[name]]


def names(path):
    """Files in a working directory. TensorBoard begins another one whenever a search goes on."""
    files = {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
    return {str(file.parent) if file.parts[0] == "tensorboard" else str(file) for file in files}


def start(folder, reference, stage):
    """A working directory in `folder` as it was before a stage."""
    path = folder / "run"
    shutil.copytree(reference.before[stage], path, dirs_exist_ok=True)
    return path


def environment(folder):
    """With a folder of its own for temporary files, which a kill leaves there."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(folder / "tmp")}


# --- kills


def kills(folder, reference):
    """Rows of the table."""
    rng = random.Random(_SEED.value)
    moments = [(rng.uniform(0, reference.total()), rng.uniform(0, 1)) for _ in range(_KILLS.value)]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL.value) as pool:
        futures = {pool.submit(_killed, folder / f"kill-{i}", reference, *m): i for i, m in enumerate(moments)}
        for future in concurrent.futures.as_completed(futures):
            i = futures[future]
            path, stage, count, failure = future.result()
            wrong = [failure] if failure else differences(evidence(path), reference.evidence)
            keras.backend.clear_session()
            wrong += [f"left over: {name}" for name in sorted(names(path) - names(reference.path))]
            wrong += [f"missing: {name}" for name in sorted(names(reference.path) - names(path))]
            counts[stage, "killed"] += 1
            counts[stage, "equal"] += not wrong
            print(f"kill {i}: {count} x, first in {stage}: {'; '.join(wrong) or 'equal'}", flush=True)
            shutil.rmtree(folder / f"kill-{i}")
    rows = [(f"killed in {s}", counts[s, "killed"], counts[s, "equal"]) for s in _STAGES if counts[s, "killed"]]
    return [*rows, ("killed, in all", len(moments), sum(equal for _, _, equal in rows))]


def _killed(folder, reference, moment, again):
    """(working directory, stage killed, kills, failure) of one run that is killed and started again."""
    for stage in _STAGES:
        if moment < reference.seconds[stage]:
            break
        moment -= reference.seconds[stage]
    folder.mkdir()
    path = start(folder, reference, stage)
    arguments = command("run", path, *reference.settings)
    while not _kill(arguments, folder, moment):  # the machine was faster than with the reference
        shutil.rmtree(path)
        start(folder, reference, stage)
        moment *= 0.8
    count, killed = 1, _under_way(path)
    if again < _AGAIN:
        # At a moment of what is then left, roughly.
        rest = sum(reference.seconds[s] for s in _STAGES[_STAGES.index(killed) :])
        count += _kill(arguments, folder, rest * again / _AGAIN)
    done = subprocess.run(arguments, cwd=ROOT, env=environment(folder), capture_output=True, text=True)
    failure = f"exit {done.returncode}: {done.stderr[-1000:]}" if done.returncode else ""
    return path, killed, count, failure


def _kill(arguments, folder, seconds):
    """Starts a run and kills it after a time; returns whether it had not ended before."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(folder),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _under_way(path):
    """The first stage that has not ended; the last, if all have."""
    file = path / "manifest.json"
    ended = json.loads(file.read_text())["stages"] if file.exists() else {}
    return next((stage for stage in _STAGES if stage not in ended), _STAGES[-1])


# --- disk


def in_namespace():
    """Starts this program again where it may mount; returns, with the reason, if that cannot be."""
    if os.environ.get("FAULTS_NAMESPACE"):
        return ""
    probe = "d=$(mktemp -d) && mount -t tmpfs -o size=64k tmpfs $d && umount $d && rmdir $d"
    try:
        done = subprocess.run(["unshare", "-rm", "sh", "-c", probe], capture_output=True, text=True)
    except OSError as error:
        return f"unshare: {error.strerror}"
    if done.returncode:
        return done.stderr.strip()
    os.environ["FAULTS_NAMESPACE"] = "1"
    os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])


@contextlib.contextmanager
def mounted(*arguments):
    """A mount at the last argument, while it lasts."""
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(arguments[-1])], check=True)


def disk(folder, reference):
    """Rows of the table."""
    rng = random.Random(_SEED.value)
    reference.evidence  # noqa: B018  before several threads ask for it
    tasks = []
    for stage in _STAGES:
        needed = max(_pages(reference.path, reference.before[stage]), 1)
        # From nothing at all to not quite enough, once in each equal part of what the stage writes.
        slacks = [0, *(int((i + rng.random()) / _SIZES.value * needed) for i in range(_SIZES.value - 1))]
        tasks += [("full disk", stage, _on_full_disk, slack) for slack in slacks]
        tasks.append(("read-only folder", stage, _in_read_only, "."))
        if (reference.before["report"] / stage).exists():
            tasks.append(("read-only folder within it", stage, _in_read_only, stage))
        if stage in ("sample", "retrain"):
            tasks.append(("full folder for temporary files", stage, _without_temporary, rng.randrange(4, 128)))
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL.value) as pool:
        futures = {
            pool.submit(_on_disk, folder / f"disk-{i}", reference, stage, case, argument): (kind, stage, argument)
            for i, (kind, stage, case, argument) in enumerate(tasks)
        }
        for future in concurrent.futures.as_completed(futures):
            kind, stage, argument = futures[future]
            outcome, wrong = future.result()
            counts[kind, "cases"] += 1
            counts[kind, "right"] += not wrong
            counts[kind, "enough"] += outcome == "enough"
            print(f"{kind}, {stage}, {argument}: {outcome}{'; WRONG: ' * bool(wrong)}{'; '.join(wrong)}", flush=True)
    kinds = list(dict.fromkeys(kind for kind, *_ in tasks))
    return [(kind, counts[kind, "cases"], counts[kind, "right"]) for kind in kinds]


def _pages(path, before=None):
    """Bytes that a folder takes on a tmpfs, or takes more than another."""
    size = sum(-(-file.stat().st_size // 4096) * 4096 for file in path.rglob("*") if file.is_file())
    return size - (_pages(before) if before else 0)


def _on_disk(folder, reference, stage, case, argument):
    """(what was said, what is wrong) of a stage where it cannot write, and again where it can."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        path, variables, relieve = case(folder, reference, stage, argument, stack)
        held = {name: (path / name).read_bytes() for name in names(path) if (path / name).is_file()}
        arguments = command(stage, path, *reference.settings)
        done = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("tfnas: ")]
        wrong, outcome = [], "enough"
        if done.returncode:
            outcome = lines[-1] if lines else "no line"
            if done.returncode != 1 or len(lines) != 1 or "Traceback" in done.stderr or str(folder) not in outcome:
                wrong.append(f"exit {done.returncode}, stderr:\n{done.stderr[-3000:]}")
            for name, content in held.items():
                if name != "manifest.json" and (path / name).read_bytes() != content:
                    wrong.append(f"lost: {name}")
        kept = _evaluations(path)
        relieve()
        done = subprocess.run(arguments, cwd=ROOT, env=environment(folder), capture_output=True, text=True)
        if done.returncode:
            wrong.append(f"again: exit {done.returncode}: {done.stderr[-1000:]}")
        else:
            with _TENSORFLOW:
                wrong += differences(evidence(path, [stage]), reference.evidence)
            if _evaluations(path)[: len(kept)] != kept:
                wrong.append("evaluations were made again")
            later = {name for name in names(path) if "/.tfnas-" in f"/{name}"}
            wrong += [f"left over: {name}" for name in later]
    shutil.rmtree(folder)
    return outcome.replace(str(folder), ""), wrong


def _evaluations(path):
    file = path / "sample/evaluations.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _on_full_disk(folder, reference, stage, slack, stack):
    place = folder / "disk"
    place.mkdir()
    size = _pages(reference.before[stage]) + slack // 4096 * 4096 + 4096
    stack.enter_context(mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place))

    def relieve():
        subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)

    return start(place, reference, stage), environment(folder), relieve


def _in_read_only(folder, reference, stage, name, stack):
    path = start(folder, reference, stage)
    place = path / name
    place.mkdir(exist_ok=True)
    inner = stack.enter_context(contextlib.ExitStack())
    inner.enter_context(mounted("--bind", place, place))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    return path, environment(folder), inner.close


def _without_temporary(folder, reference, stage, kilobytes, stack):
    variables = environment(folder)
    stack.enter_context(mounted("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder / "tmp"))

    def relieve():
        subprocess.run(["mount", "-o", "remount,size=256m", str(folder / "tmp")], check=True)

    return start(folder, reference, stage), variables, relieve


# --- damage

_DATA = "tensorflow_datasets/digits/1.0.0"
# What each stage reads, as patterns, besides its own outputs: one that is no longer as it was left is made again.
_READ = {
    "search": ("manifest.json", *(f"search/{pattern}" for pattern in _CHECKPOINTS), f"{_DATA}/*"),
    "sample": (
        "manifest.json",
        "search/supernet.keras",
        "posterior.json",
        "sample/evaluations.jsonl",
        "sample/shards/*",
        "sample/latencies.json",
        f"{_DATA}/*",
    ),
    "retrain": (
        "manifest.json",
        "search/supernet.keras",
        "sample/ranking.json",
        "architecture.json",
        *(f"retrain/{pattern}" for pattern in _CHECKPOINTS),
        f"{_DATA}/*",
    ),
    "export": ("manifest.json", "retrain/subnet.keras", "retrain/architecture.json", "export/**/*", f"{_DATA}/*"),
    "report": (
        "manifest.json",
        "search/history.jsonl",
        "posterior.json",
        "sample/candidates.jsonl",
        "sample/ranking.json",
        "sample/front.json",
        "architecture.json",
        "retrain/results.json",
        "export/results.json",
    ),
}
_DAMAGES = ("truncated", "one bit flipped", "emptied", "another's content")


def damage(folder, reference):
    """Rows of the table."""
    rng = random.Random(_SEED.value)
    settings = _config(reference)
    recorded = workdir.Workdir(reference.path).manifest()["stages"]
    cases = [
        (stage, str(file.relative_to(reference.path)), how)
        for stage in _STAGES
        for file in sorted({f for p in (*_READ[stage], *recorded[stage]["outputs"]) for f in reference.path.glob(p)})
        if file.is_file()
        for how in _DAMAGES
    ]
    rng.shuffle(cases)
    # Each file with each damage before any a second time, at another place.
    cases = (cases * (_DAMAGE.value // len(cases) + 1))[: _DAMAGE.value]
    counts = collections.Counter()
    path = folder / "damaged"
    for i, (stage, name, how) in enumerate(cases):
        shutil.copytree(reference.path, path)
        _spoil(path, name, how, rng)
        outputs = recorded[stage]["outputs"]
        if not any(name == output or name.startswith(f"{output}/") for output in outputs):
            for output in map(path.joinpath, outputs):  # as if the stage had been killed at its end
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        outcome = _outcome(stage, settings, path, name, reference)
        good = outcome == "right" or outcome.startswith("told")
        counts[_kind(name), "cases"] += 1
        counts[_kind(name), "good"] += good
        counts[outcome.partition(":")[0]] += 1
        message = outcome.replace(str(path), "")
        print(f"damage {i}: {stage}, {name}, {how}: {'' if good else 'WRONG: '}{message}", flush=True)
        shutil.rmtree(path)
    kinds = sorted({key[0] for key in counts if isinstance(key, tuple)})
    rows = [(f"damaged {kind}", counts[kind, "cases"], counts[kind, "good"]) for kind in kinds]
    told = f"damaged, in all ({counts['right']} end right, {counts['told']} with one line)"
    return [*rows, (told, len(cases), sum(good for _, _, good in rows))]


def _config(reference):
    """What the command line makes of the settings."""
    specification = importlib.util.spec_from_file_location("digits", ROOT / "configs" / "digits.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    values = module.get_config().to_dict()
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
        alike = sorted(f for f in path.rglob(f"*{file.suffix}") if f.is_file() and f.read_bytes() != content)
        content = rng.choice(alike or sorted(f for f in path.rglob("*.json"))).read_bytes()
    file.write_bytes(content)


def _outcome(stage, settings, path, name, reference):
    """'right', 'told: MESSAGE', or what is wrong."""
    try:
        keras.backend.clear_session()
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"tfnas.stages.{stage}").run(settings, path)
    except UserError as error:
        # Of a data set the folder is what is to be deleted.
        named = str(path / (_DATA if name.startswith(_DATA) else name)) in str(error)
        one_line = "\n" not in str(error)
        return f"{'told' if named and one_line else 'not named, or not in one line'}: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}; {traceback.format_exc().splitlines()[-4:-1]}"
    wrong = differences(evidence(path, [stage]), reference.evidence)
    return f"wrong result: {', '.join(wrong)}" if wrong else "right"


def _kind(name):
    """What rows of the table are called."""
    if name.startswith(_SAVED_MODEL):
        return _SAVED_MODEL
    if "checkpoint" in name:
        return f"{name.partition('/')[0]}/ checkpoint"
    return "sample/shards" if name.startswith("sample/shards/") else name


def main(_):
    """Prints what happens as it happens and, at the end, a Markdown table of counts and seconds."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    skipped = in_namespace() if "disk" in _PARTS.value else ""
    begin, rows, seconds = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if "kills" in _PARTS.value or ("disk" in _PARTS.value and not skipped):
            # As many side by side as later, so that the moments are drawn from wall times like theirs.
            with concurrent.futures.ThreadPoolExecutor(_PARALLEL.value) as pool:
                titles = ["reference", *(f"again-{i}" for i in range(1, _PARALLEL.value))]
                reference, *others = pool.map(lambda title: Reference(folder, title), titles)
            equal = [not differences(other.evidence, reference.evidence) for other in others]
            if others:
                rows.append(("undisturbed, again", len(others), sum(equal)))
            seconds["undisturbed"] = reference.total()
        for part, runs in (("kills", kills), ("disk", disk)):
            if part in _PARTS.value and not (part == "disk" and skipped):
                start_of_part = time.monotonic()
                rows += runs(folder, reference)
                seconds[part] = time.monotonic() - start_of_part
        if "damage" in _PARTS.value:
            start_of_part = time.monotonic()
            rows += damage(folder, Reference(folder, "damage-reference", _LATENCY, shards=True))
            seconds["damage"] = time.monotonic() - start_of_part
    print("\n| case | number | as expected |\n|---|---|---|")
    for title, number, good in rows:
        print(f"| {title} | {number} | {good} |")
    if skipped:
        print(f"\ndisk: skipped, because nothing can be mounted here ({skipped}).")
    print("\nSeconds: " + ", ".join(f"{part} {value:.0f}" for part, value in seconds.items()), end="")
    print(f"; in all {time.monotonic() - begin:.0f}.")


if __name__ == "__main__":
    app.run(main)
