"""Stages that run out of space, or may not write."""

import collections
import concurrent.futures
import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading

from benchmarks.faults.reference import ROOT, STAGES, command, differences, environment, evidence, names, start

_TENSORFLOW = threading.Lock()  # one network at a time is loaded in this process


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
    os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "benchmarks.faults", *sys.argv[1:]])


@contextlib.contextmanager
def mounted(*arguments):
    """A mount at the last argument, while it lasts."""
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(arguments[-1])], check=True)


def disk(folder, reference, sizes, parallel, seed):
    """Rows of the table, of so many sizes of a disk for each stage."""
    rng = random.Random(seed)
    reference.evidence  # noqa: B018  before several threads ask for it
    tasks = []
    for stage in STAGES:
        needed = max(_pages(reference.path, reference.before[stage]), 1)
        # From nothing at all to not quite enough, once in each equal part of what the stage writes.
        slacks = [0, *(int((i + rng.random()) / sizes * needed) for i in range(sizes - 1))]
        tasks += [("full disk", stage, _on_full_disk, slack) for slack in slacks]
        tasks.append(("read-only folder", stage, _in_read_only, "."))
        if (reference.before["report"] / stage).exists():
            tasks.append(("read-only folder within it", stage, _in_read_only, stage))
        if stage in ("sample", "retrain"):
            tasks.append(("full folder for temporary files", stage, _without_temporary, rng.randrange(4, 128)))
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
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
