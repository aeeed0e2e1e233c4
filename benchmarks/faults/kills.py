"""Runs that are killed and started again."""

import collections
import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess

from benchmarks.faults.reference import ROOT, STAGES, command, differences, environment, evidence, keras, names, start

_AGAIN = 0.3  # probability that a resumed run is killed again


def kills(folder, reference, number, parallel, seed):
    """Rows of the table, of so many runs that are killed."""
    rng = random.Random(seed)
    moments = [(rng.uniform(0, reference.total()), rng.uniform(0, 1)) for _ in range(number)]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
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
    rows = [(f"killed in {s}", counts[s, "killed"], counts[s, "equal"]) for s in STAGES if counts[s, "killed"]]
    return [*rows, ("killed, in all", len(moments), sum(equal for _, _, equal in rows))]


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
    return next((stage for stage in STAGES if stage not in ended), STAGES[-1])
