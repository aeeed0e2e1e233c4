"""Runs and calls of `tfnas.shrink` that are killed and started again."""

import collections
import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from benchmarks.faults.reference import ROOT, STAGES, command, differences, environment, evidence, keras, names, start

_AGAIN = 0.3  # probability that a resumed run is killed again


def kills(folder, references, number, parallel, seed):
    """Rows of the table, of so many runs that are killed; they repeat the references in turns."""
    rng = random.Random(seed)
    counts = collections.Counter()
    tasks = []
    for i in range(number):
        reference = references[i % len(references)]
        tasks.append((folder / f"kill-{i}", reference, rng.uniform(0, reference.total()), rng.uniform(0, 1)))
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(_killed, *task): task for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            (case, reference, *_), (path, stage, count, failure) = futures[future], future.result()
            wrong = [failure] if failure else differences(evidence(path), reference.evidence)
            keras.backend.clear_session()
            wrong += [f"left over: {name}" for name in sorted(names(path) - names(reference.path))]
            wrong += [f"missing: {name}" for name in sorted(names(reference.path) - names(path))]
            counts[stage, "killed"] += 1
            counts[stage, "equal"] += not wrong
            line = f"{count} x, first in {stage} of {reference.path.name}: {'; '.join(wrong) or 'equal'}"
            print(f"{case.name}: {line}", flush=True)
            shutil.rmtree(case)
    rows = [(f"killed in {s}", counts[s, "killed"], counts[s, "equal"]) for s in STAGES if counts[s, "killed"]]
    return [*rows, ("killed, in all", number, sum(equal for _, _, equal in rows))]


def shrink_kills(folder, number, parallel, seed):
    """Rows of the table, of so many calls of `tfnas.shrink` that are killed and made again."""
    first, reference = folder / "shrink-first", folder / "shrink-again"
    first.mkdir()
    failures = [_finish(_shrink(first), first)]  # trains the network, too
    _given(reference, first)
    start = time.monotonic()
    failures.append(_finish(_shrink(reference), reference))
    seconds = time.monotonic() - start
    if any(failures):
        raise RuntimeError(f"undisturbed calls of tfnas.shrink failed: {failures}")
    same = _shrunk(reference) == _shrunk(first)
    rng = random.Random(seed)
    moments = [(rng.uniform(seconds / 4, seconds), rng.uniform(0, 1)) for _ in range(number)]
    tasks = [(folder / f"shrink-{i}", reference, *moment) for i, moment in enumerate(moments)]
    equal = 0
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(_killed_shrink, *task): task[0] for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            path, (had, count, failure) = futures[future], future.result()
            wrong = [failure] if failure else differences(_shrunk(path), _shrunk(reference))
            equal += not wrong
            print(f"{path.name}: {count} x, first with {had}: {'; '.join(wrong) or 'equal'}", flush=True)
            shutil.rmtree(path)
    return [("`tfnas.shrink`, again", 1, int(same)), ("`tfnas.shrink`, killed", number, equal)]


def _shrink(folder):
    return [sys.executable, "-m", "benchmarks.faults.shrink_digits", str(folder)]


def _given(folder, other):
    """Makes a folder with the network that another one has."""
    folder.mkdir()
    shutil.copy(other / "model.keras", folder)


def _shrunk(folder):
    """Returns what must be equal, by name: what the program has found, and the files that it leaves."""
    found = json.loads((folder / "found.json").read_text())
    return {**found, "files": sorted(names(folder / "run"))}


def _killed_shrink(folder, reference, moment, again):
    """(phase, kills, failure) of one call that is killed and made again."""
    _given(folder, reference)
    while not _kill(_shrink(folder), folder, moment):
        shutil.rmtree(folder)
        _given(folder, reference)
        moment *= 0.8
    phases = sorted(str(file.relative_to(folder / "run").parent) for file in (folder / "run").rglob("*.npz"))
    count = 1
    if again < _AGAIN:
        count += _kill(_shrink(folder), folder, moment * (0.5 + again / _AGAIN))
    (folder / "found.json").unlink(missing_ok=True)
    return f"files of {', '.join(dict.fromkeys(phases)) or 'no phase'}", count, _finish(_shrink(folder), folder)


def _killed(folder, reference, moment, again):
    """(working directory, stage killed, kills, failure) of one run that is killed and started again."""
    for stage in STAGES:
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
        rest = sum(reference.seconds[s] for s in STAGES[STAGES.index(killed) :])
        count += _kill(arguments, folder, rest * again / _AGAIN)
    return path, killed, count, _finish(arguments, folder)


def _finish(arguments, folder):
    """Runs a command to its end; returns how it failed, if it did."""
    done = subprocess.run(arguments, cwd=ROOT, env=environment(folder), capture_output=True, text=True)
    return f"exit {done.returncode}: {done.stderr[-1000:]}" if done.returncode else ""


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
    return next((stage for stage in STAGES if stage not in ended), STAGES[-1])
