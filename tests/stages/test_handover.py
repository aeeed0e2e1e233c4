"""What travels between the machines of a pipeline: parts of a config, working directories, artifacts."""

import dataclasses
import fcntl
import json
import pathlib
import threading

import pytest
from conftest import load_config

from tfnas import config as config_lib
from tfnas.common.errors import UserError
from tfnas.runs import stage_table
from tfnas.runs.stage_table import STAGES
from tfnas.runs.workdir import Workdir
from tfnas.stages import handover

CONFIG = dataclasses.replace(load_config("digits"), tune=config_lib.Tune())  # which no stage depends on
PARTS = handover.split(CONFIG)
ALL = tuple(PARTS.values())


def test_parts_make_the_config_again():
    assert handover.join(PARTS.values()) == CONFIG
    assert json.loads(PARTS["sample"])["sample"]["num_candidates"] == 500
    assert handover.join([PARTS["search"]]).sample == config_lib.Sample()


def test_every_section_is_in_one_part_and_before_the_stage_that_depends_on_it():
    names = [name for part in handover.PARTS.values() for name in part]
    assert sorted([*names, "tune"]) == sorted(field.name for field in dataclasses.fields(config_lib.Config))
    known = set()
    for stage in (stage for stage in STAGES if stage != "report"):
        known |= set(handover.PARTS[stage])
        assert {name.partition(".")[0] for name in STAGES[stage].settings} <= known, stage


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "config: not JSON of sections"),
        ("[]", "config: not JSON of sections"),
        ('{"search": {"epoch": 3}}', "no key 'search.epoch'; did you mean 'search.epochs'"),
        ('{"search": {"epochs": 3.0}}', "'search.epochs' must be a whole number"),
    ],
)
def test_a_bad_part_is_told(text, message):
    with pytest.raises(UserError, match=message):
        handover.join([text])


def test_the_version_sees_the_users_own_functions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_images.py").write_text("def splits(): return 1\n")
    own = dataclasses.replace(CONFIG, data=config_lib.Data(source="own_images:splits"))
    before = handover.version(own)
    assert before == handover.version(own) != handover.version(CONFIG)
    (tmp_path / "own_images.py").write_text("def splits(): return 2\n")
    assert handover.version(own) != before
    lost = dataclasses.replace(CONFIG, data=config_lib.Data(source="no_such_module:splits"))
    assert handover.version(lost) == handover.version(CONFIG)


def test_the_version_sees_templates_besides_code(monkeypatch):
    seen = set()
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: seen.add(path.suffix) or b"")
    handover.version(CONFIG)
    assert {".py", ".html", ".css", ".md"} <= seen


def searched(folder, text="x"):
    """What a search handed over; its files only need to be there."""
    work = Workdir(folder / "search")

    def body():
        for name in STAGES["search"].outputs:
            work.write(name, lambda path: path.write_text(text))
        work.file("search/checkpoints/1.npz").write_text("large")
        work.file("tensorflow_datasets/digits/data").write_text("larger")

    work.run_stage("search", CONFIG, body)
    handover.Task("search", CONFIG, work.path, "1").hand_over(folder / "handed")
    return folder / "handed"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_results_travel_with_their_manifest_and_without_checkpoints_and_data(tmp_path):
    handed = searched(tmp_path)
    assert files(handed) == sorted([*STAGES["search"].outputs, stage_table.MANIFEST])
    with handover.task("evaluate", ALL, [handed]) as task:
        assert Workdir(task.path).is_current("search", CONFIG)
        assert task.config == CONFIG
    assert not task.path.exists()  # without a scratch folder, the working directory is temporary


def test_what_was_changed_on_the_way_is_refused(tmp_path, capsys):
    handed = searched(tmp_path)
    (handed / stage_table.POSTERIOR).write_text("y")
    with pytest.raises(SystemExit) as ended, handover.task("evaluate", ALL, [handed]) as task:
        Workdir(task.path).read(stage_table.POSTERIOR, "sample")
    assert ended.value.code == 1
    assert "truncated or changed since search wrote it" in capsys.readouterr().err.splitlines()[-1]


def test_an_input_that_is_not_there_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit), handover.task("evaluate", ALL, [tmp_path / "nothing"]):
        pass
    assert "a folder that an earlier stage handed over expected" in capsys.readouterr().err


def test_a_stage_goes_on_in_its_scratch_folder(tmp_path):
    handed, scratch = searched(tmp_path), tmp_path / "scratch"

    def place(parts=ALL, inputs=(handed,), version="1", shard=""):
        with handover.task("evaluate", parts, inputs, version, str(scratch), shard) as task:
            return task.path

    first = place()
    (first / "checkpoint").write_text("half")
    (first / stage_table.POSTERIOR).write_text("what the stage makes of it")
    assert place() == first and (first / "checkpoint").read_text() == "half"
    assert (first / stage_table.POSTERIOR).read_text() != "x"  # inputs were not copied over it again
    changed = {**PARTS, "evaluate": '{"evaluate": {"threshold": 0.5}}'}
    others = [place(tuple(changed.values())), place(version="2"), place(shard="1/2")]
    others.append(place(inputs=(searched(tmp_path / "other", "z"),)))
    assert len({first, *others}) == 5


def test_inputs_copied_in_part_are_copied_again(tmp_path):
    handed, scratch = searched(tmp_path), tmp_path / "scratch"
    with handover.task("evaluate", ALL, [handed], "1", str(scratch)) as task:
        pass
    (task.path.parent / "ready").unlink()  # as if the process had been killed while it copied
    (task.path / stage_table.POSTERIOR).write_text("")
    with handover.task("evaluate", ALL, [handed], "1", str(scratch)) as task:
        assert (task.path / stage_table.POSTERIOR).read_text() == "x"


def test_one_that_still_works_there_is_waited_for(tmp_path, capsys):
    with handover.task("evaluate", ALL, [], "1", str(tmp_path)) as task:
        place = task.path.parent
    with open(place / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        released = threading.Event()

        def let_go():
            released.set()
            fcntl.flock(held, fcntl.LOCK_UN)

        release = threading.Timer(0.3, let_go)
        release.start()
        with handover.task("evaluate", ALL, [], "1", str(tmp_path)):
            assert released.is_set()
    release.join()
    assert f"waits for another process that works in {place}" in capsys.readouterr().out


def test_a_run_travels_from_stage_to_stage(tmp_path, monkeypatch):
    """In the order, with the parts of the config and with the folders of the pipeline's components."""
    monkeypatch.setattr(handover.terminal, "load_tensorflow", lambda: None)
    handed = {stage: tmp_path / stage for stage in STAGES}

    def at_work(stage, parts, *inputs, names=None, check=lambda work, config: None):
        with handover.task(stage, ALL[:parts], [handed[other] for other in inputs]) as task:
            work = Workdir(task.path)
            check(work, task.config)

            def body():
                for name in STAGES[stage].outputs:
                    work.write(name, lambda path: path.write_text(f"of {stage}"))

            assert work.run_stage(stage, task.config, body)
            task.hand_over(handed[stage], names)
            return work.manifest().stages

    def exported(there):
        def check(work, config):
            assert work.has(stage_table.EXPORT_RESULTS, config) == there

        return check

    at_work("search", 1)
    at_work("sample", 2, "search")
    at_work("retrain", 3, "search", "sample")
    at_work("evaluate", 4, "retrain")
    before = ("search", "sample", "retrain", "evaluate")
    # What export wrote besides goes elsewhere.
    at_work("export", 5, *before, names=[stage_table.EXPORT_RESULTS])
    assert {*at_work("report", 5, *before, check=exported(False))} == {*before, "report"}
    stages = at_work("report", 5, *before, "export", check=exported(True))
    assert list(stages) == list(STAGES) and all(entry.versions["keras"] for entry in stages.values())
    assert stage_table.EXPORT_RESULTS in stages["report"].inputs
