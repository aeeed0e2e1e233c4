import errno
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import stat
import sys

import processes
import pytest

from tfnas import config
from tfnas.common import atomic, errors
from tfnas.common.errors import UserError
from tfnas.runs import provenance, stage_table, workdir
from tfnas.runs.sampled import LayerLatencies


def finished_search(path):
    return finished(path, "search", text="content")


def finished(path, stage, settings=None, printed=None, text=None):
    """A folder in which a stage has ended; with `printed`, pytest's capsys, whether it ran."""
    work = workdir.Workdir(path)

    def body():
        for name in stage_table.STAGES[stage].outputs:
            work.write(name, lambda file: file.write_text(text or f"of {stage}"))

    work.run_stage(stage, settings or config.Config(), body)
    return "up to date" not in printed.readouterr().out if printed else work


def test_write_is_atomic(tmp_path):
    work = workdir.Workdir(tmp_path)
    work.write_json("a.json", {"old": 1})

    def fails(path):
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        work.write("a.json", fails)
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written"):
        workdir.Workdir(tmp_path / "file" / "run")


def test_stage_needs_the_one_before(tmp_path):
    with pytest.raises(UserError, match=r"sample needs search's posterior.json, and .* has none: run 'tfnas search"):
        workdir.Workdir(tmp_path).read(stage_table.POSTERIOR, "sample")


@pytest.mark.parametrize("damage", ["", "conten", "content and more"])
def test_altered_input_is_refused(tmp_path, damage):
    work = finished_search(tmp_path)
    assert work.read(stage_table.POSTERIOR, "sample").read_text() == "content"
    (tmp_path / stage_table.POSTERIOR).write_text(damage)
    with pytest.raises(UserError, match="posterior.json: truncated or changed since search wrote it"):
        work.read(stage_table.POSTERIOR, "sample")


def test_stage_runs_once_and_again_after_damage(tmp_path, capsys):
    work = finished_search(tmp_path)
    work.run_stage("search", config.Config(), lambda: pytest.fail("search was up to date"))
    assert "search    up to date" in capsys.readouterr().out
    (tmp_path / stage_table.POSTERIOR).write_text("damaged")
    assert not work.is_current("search", config.Config())


def test_another_search_is_refused_but_later_settings_may_change(tmp_path):
    work = finished_search(tmp_path)
    with pytest.raises(UserError, match=r"holds a search with search.parameters=0.5, and this config has 0.3"):
        work.claim(config.Config(search=config.Search(parameters=0.3, multiply_adds=0.5)))
    # What was never set is not what is named.
    keeps = r"made for retrain.epochs=24, and this config has 30: --config.search.cosine_epochs=32 keeps that search"
    with pytest.raises(UserError, match=keeps):
        work.claim(config.Config(retrain=config.Retrain(epochs=30)))
    with pytest.raises(UserError, match=r"for retrain.weight_decay=0.005, .* 0.1: --config.search.weight_decay=0.005"):
        work.claim(config.Config(retrain=config.Retrain(weight_decay=0.1)))
    kept = config.Config(search=config.Search(cosine_epochs=32), retrain=config.Retrain(epochs=30))
    assert work.is_current("search", kept)
    work.claim(kept)
    work.claim(config.Config())
    with pytest.raises(UserError, match=r"holds a search with search.cosine_epochs=32, and this config has 40"):
        work.claim(config.Config(search=config.Search(cosine_epochs=40), retrain=config.Retrain(epochs=30)))
    # Of several settings that differ, one that somebody chose is named; those that follow from it are not.
    with pytest.raises(UserError, match=r"a search with search.epochs=8, and this config has 6: use another --workdir"):
        work.claim(config.Config(search=config.Search(epochs=6)))
    with pytest.raises(UserError, match=r"holds a search with search.ell2=0.0, and this config has 80.0: use another"):
        work.claim(config.Config(search=config.Search(ell2=80.0)))
    both = config.Retrain(epochs=30, weight_decay=0.1)
    keeps = "--config.search.cosine_epochs=32 --config.search.weight_decay=0.005 keeps that search"
    with pytest.raises(UserError, match=keeps):
        work.claim(config.Config(retrain=both))
    kept = config.Config(search=config.Search(cosine_epochs=32, weight_decay=0.005), retrain=both)
    assert work.is_current("search", kept)
    # Said or left out, it is the same search.
    said = config.Search(parameters=0.5, multiply_adds=0.5, initial_drop=0.02)
    assert work.is_current("search", config.Config(search=said))
    with pytest.raises(UserError, match=r"seed=0, and this config has 1"):
        work.claim(config.Config(seed=1))
    work.claim(config.Config(sample=config.Sample(num_candidates=7)))
    work.claim(config.Config(data=config.Data(data_dir="elsewhere")))
    assert work.is_current("search", config.Config(data=config.Data(data_dir="elsewhere")))
    work.claim(config.Config(search=config.Search(guard="off")))
    assert work.is_current("search", config.Config(search=config.Search(guard="off")))


def test_a_mistake_in_the_settings_may_be_mended_until_a_search_has_begun(tmp_path):
    work = workdir.Workdir(tmp_path)
    work.claim(config.Config(data=config.Data(folder="typo")))
    work.claim(config.Config(data=config.Data(folder="right")))
    work.file(f"{stage_table.CHECKPOINTS}/step-000000020.npz").write_text("of the first epoch")
    with pytest.raises(UserError, match="holds a search with data.folder='right', and this config has 'other'"):
        work.claim(config.Config(data=config.Data(folder="other")))


def test_truncated_manifest_is_refused(tmp_path):
    finished_search(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(UserError, match="manifest.json: truncated"):
        workdir.Workdir(tmp_path).manifest()


def test_each_stage_has_what_it_ran_with(tmp_path, monkeypatch):
    work = finished(tmp_path, "search")
    monkeypatch.setattr(provenance, "versions", lambda: {"keras": "4.0.0"})
    other = config.Config(sample=config.Sample(num_candidates=7))
    finished(tmp_path, "sample", other)
    search, sample = (work.manifest().stages[stage] for stage in ("search", "sample"))
    assert search.versions["keras"] == importlib.metadata.version("keras")
    assert search.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert search.versions["tfnas"] and sample.versions == {"keras": "4.0.0"}
    assert search.settings["seed"] == 0 and search.settings["search"]["parameters"] == 0.5
    assert sample.settings["sample"]["num_candidates"] == 7 and [*sample.settings["search"]] == ["latency_device"]
    assert sample.inputs == {name: search.outputs[name] for name in (stage_table.SUPERNET, stage_table.POSTERIOR)}
    assert search.outputs[stage_table.POSTERIOR] == hashlib.sha256(b"of search").hexdigest()


def test_other_trained_weights_are_another_search(tmp_path, capsys):
    file = tmp_path / "a.weights.h5"
    settings = config.Config(supernet=config.Supernet(weights=str(file)))
    file.write_text("one")
    work = finished(tmp_path / "run", "search", settings)
    key = work.key("search", settings)
    finished(tmp_path / "run", "sample", settings)
    file.unlink()  # the run may have moved to another machine
    assert work.is_current("search", settings) and work.key("search", settings) == key
    file.write_text("other")
    assert not work.is_current("search", settings) and work.key("search", settings) != key
    with pytest.raises(UserError, match="sample needs search's results, and .* has those of another supernet.weights"):
        finished(tmp_path / "run", "sample", settings)
    capsys.readouterr()
    assert finished(tmp_path / "run", "search", settings, capsys)


# What a user changes, and the stages that no longer fit then, in the order in which they are to be run again.
CHANGES = [
    (dict(sample=dict(rank_by="accuracy")), "sample.rank_by='loss', while this config has 'accuracy'", ["sample"]),
    (dict(sample=dict(budgets=(0.5,))), "sample.budgets=[], while this config has [0.5]", ["sample"]),
    (dict(sample=dict(recalibrate=10)), "sample.recalibrate=250, while this config has 10", ["sample", "retrain"]),
    (dict(retrain=dict(baseline=False)), "retrain.baseline=True, while this config has False", ["retrain"]),
    (dict(evaluate=dict(threshold=0.5)), "evaluate.threshold=0.0, while this config has 0.5", ["evaluate"]),
]


@pytest.mark.parametrize("change, difference, again", CHANGES)
def test_what_an_earlier_stage_left_under_other_settings_is_not_used(tmp_path, capsys, change, difference, again):
    for stage in stage_table.STAGES:
        finished(tmp_path, stage)
    work = workdir.Workdir(tmp_path)
    ((section, values),) = change.items()
    kind = getattr(config, section.capitalize())
    changed = config.Config(**{section: kind(**values)})
    stages = list(stage_table.STAGES)
    for stage in stages[stages.index(again[0]) + 1 :]:
        expected = (
            f"{stage} needs {again[0]}'s results, and {tmp_path} has those of {difference}: run 'tfnas {again[0]}"
        )
        with pytest.raises(UserError, match=re.escape(expected)):
            work.run_stage(stage, changed, lambda: pytest.fail("ran on another config's results"))
    assert work.up_to_date(changed) == stages[: stages.index(again[0])]
    # What `tfnas run` does. Files of the same content leave those up to date that do not depend on the setting itself.
    capsys.readouterr()
    ran = [stage for stage in stages if finished(tmp_path, stage, changed, capsys)]
    assert ran == [*again, *(stage for stage in ("export", "report") if stage not in again)]
    assert work.up_to_date(changed) == stages


def test_results_of_another_file_of_an_earlier_stage_are_not_used(tmp_path):
    for stage in ("search", "sample", "retrain"):
        finished(tmp_path, stage)
    work = finished(tmp_path, "sample", config.Config(sample=config.Sample(rank_by="accuracy")), text="another winner")
    finished(tmp_path, "sample", text="another winner")  # ranked by loss again, on other evaluations
    with pytest.raises(
        UserError, match=r"evaluate needs retrain's results, and .* has those of another architecture.j"
    ):
        work.run_stage("evaluate", config.Config(), lambda: pytest.fail("ran"))


def test_a_stage_asks_only_for_the_files_that_it_reads(tmp_path):
    """A pipeline hands over retrain's results and the manifest, and evaluate runs on those."""
    for stage in ("search", "sample", "retrain"):
        finished(tmp_path / "whole", stage)
    for name in (stage_table.RESULTS, stage_table.MANIFEST):
        (tmp_path / "part" / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(tmp_path / "whole" / name, tmp_path / "part" / name)
    assert finished(tmp_path / "part", "evaluate").is_current("evaluate", config.Config())
    with pytest.raises(UserError, match="export needs retrain's retrain/subnet.keras, and .*/part has none"):
        finished(tmp_path / "part", "export")


def test_only_the_process_that_writes_claims_the_folder(tmp_path):
    mine, other = config.Config(), config.Config(sample=config.Sample(num_candidates=7))
    workdir.Workdir(tmp_path, writes=False).claim(mine)
    assert not (tmp_path / stage_table.MANIFEST).exists()
    finished_search(tmp_path)
    before = (tmp_path / stage_table.MANIFEST).read_bytes()
    workdir.Workdir(tmp_path, writes=False).claim(other)
    assert (tmp_path / stage_table.MANIFEST).read_bytes() == before
    with pytest.raises(UserError, match="seed=0, and this config has 1"):
        workdir.Workdir(tmp_path, writes=False).claim(config.Config(seed=1))


# Writes a file and reads it, as a process of an id that others have too.
WRITTEN_AGAIN_AND_AGAIN = """
import os, sys, typing
from tfnas.runs import workdir
os.getpid = lambda: 7
path, writer = sys.argv[1:]
work = workdir.Workdir(path)
for i in range(100):
    work.write_sealed("a.json", {"writer": int(writer), "filler": "x" * 10_000 * (i % 5)})
    work.read_sealed("a.json", typing.Any)  # whole, whoever wrote it
"""


def test_processes_of_one_id_write_one_file(tmp_path):
    path, out = tmp_path / "run", tmp_path / "out"
    writers = [processes.start(WRITTEN_AGAIN_AND_AGAIN, [path, i], out, out) for i in range(6)]
    for process in writers:
        process.join(60)
    assert [process.exitcode for process in writers] == [0] * 6
    assert [file.name for file in path.iterdir()] == ["a.json"]


def test_the_name_is_on_the_disk_too(tmp_path, monkeypatch):
    """What is synced, in order: the content before the rename, then the folders that have a new name in them."""
    synced, renamed, real = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "replace", lambda *names: (renamed.append(list(synced)), real(*names)))
    workdir.Workdir(tmp_path).write("a/b.txt", lambda file: file.write_text("x"))
    ((temporary,),) = renamed
    assert pathlib.Path(temporary).parent == tmp_path / "a"
    assert synced[1:] == [str(tmp_path / "a"), str(tmp_path)]


def test_a_folder_that_cannot_be_synced_is_written_too(tmp_path, monkeypatch):
    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    assert workdir.Workdir(tmp_path).write_json("a.json", 1).read_text() == "1\n"


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    left = [
        tmp_path / f"{atomic.TEMPORARY}7.posterior.json",
        tmp_path / "search" / f"{atomic.TEMPORARY}7.supernet.keras",
        tmp_path / "export" / "digits" / f"{atomic.TEMPORARY}export-x" / "model" / "saved_model.pb",
        tmp_path / "tensorflow_datasets" / "digits" / "incomplete.XYZ_1.0.0" / "digits-train.tfrecord",
    ]
    kept = [tmp_path / "notes.txt", tmp_path / "export" / "digits" / "labels.txt"]
    for file in [*left, *kept]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    other = workdir.Workdir(tmp_path / "search")  # of another folder, so not in the way
    workdir.Workdir(tmp_path)
    assert not any(file.exists() for file in left) and all(file.exists() for file in kept)
    assert not left[2].parents[1].exists() and not left[3].parent.exists()
    del other


def test_what_another_process_may_be_writing_stays(tmp_path):
    other = workdir.Workdir(tmp_path)  # holds the lock as another process would
    unfinished = tmp_path / f"{atomic.TEMPORARY}7.posterior.json"
    unfinished.write_text("half")
    workdir.Workdir(tmp_path)
    assert unfinished.exists()
    del other
    workdir.Workdir(tmp_path)
    assert not unfinished.exists()


@pytest.mark.parametrize("named", [lambda path: (), lambda path: (str(path),)], ids=["a stream", "an open"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, named):
    work = workdir.Workdir(tmp_path)
    work.write_json("a.json", {"old": 1})

    def fails(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named(path))

    with pytest.raises(OSError) as raised:
        work.write("a.json", fails)
    expected = f"{tmp_path / 'a.json'}: No space left on device"
    assert errors.unwritable(raised.value, "elsewhere") == expected
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("at", [0, 30, 200, -30, -3])
def test_a_flipped_bit_in_the_manifest_is_refused(tmp_path, at):
    finished_search(tmp_path)
    file = tmp_path / stage_table.MANIFEST
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="manifest.json: truncated or altered: delete it"):
        workdir.Workdir(tmp_path).manifest()


def test_sealed_files_are_read_as_written_or_refused(tmp_path):
    work = workdir.Workdir(tmp_path)
    latencies = LayerLatencies("key", 0.4, 0.2, {"layer": 0.1}, {"layer": 0.0})
    file = work.write_sealed("a.json", latencies)
    assert work.read_sealed("a.json", LayerLatencies) == latencies
    for content in (file.read_text().replace("0.1", "0.3"), "", "[]", "{}", "\x80"):
        file.write_text(content)
        with pytest.raises(UserError, match="a.json: truncated or altered"):
            work.read_sealed("a.json", LayerLatencies)


def test_of_several_processes_the_first_one_s_file_stays(tmp_path, monkeypatch):
    work = workdir.Workdir(tmp_path)

    def beaten(path):
        workdir.Workdir(tmp_path).write("a.txt", lambda file: file.write_text("first"), replace=False)
        path.write_text("second")

    assert work.write("a.txt", beaten, replace=False).read_text() == "first"
    assert work.write("a.txt", lambda file: file.write_text("third")).read_text() == "third"

    def none(*names):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)  # as on a bucket that is mounted as a folder
    assert work.write("b.txt", lambda file: file.write_text("alone"), replace=False).read_text() == "alone"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_stage_that_was_interrupted_has_all_versions_it_ran_with(tmp_path, monkeypatch):
    def attempt(keras, body):
        monkeypatch.setattr(provenance, "versions", lambda: {"python": "3.11.2", "keras": keras})
        workdir.Workdir(tmp_path).run_stage("search", config.Config(), body)

    def killed():
        raise KeyboardInterrupt

    for keras in ("3.14.0", "3.14.0", "3.15.1"):
        with pytest.raises(KeyboardInterrupt):
            attempt(keras, killed)
    monkeypatch.setattr(provenance, "versions", lambda: {"python": "3.11.2", "keras": "3.15.1"})
    manifest = finished_search(tmp_path).manifest()
    assert manifest.stages["search"].versions == {"python": "3.11.2", "keras": "3.14.0, then 3.15.1"}
    assert manifest.begun is None
