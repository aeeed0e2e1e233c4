import errno
import json
import os

import pytest

from tfnas import config, errors, workdir
from tfnas.errors import UserError
from tfnas.reading import mapping_of, number, record


def finished_search(path):
    work = workdir.Workdir(path)

    def body():
        for name in workdir.STAGES["search"].outputs:
            work.write(name, lambda file: file.write_text("content"))

    work.run_stage("search", config.Config(), body)
    return work


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
        workdir.Workdir(tmp_path).read(workdir.POSTERIOR, "sample")


@pytest.mark.parametrize("damage", ["", "conten", "content and more"])
def test_altered_input_is_refused(tmp_path, damage):
    work = finished_search(tmp_path)
    assert work.read(workdir.POSTERIOR, "sample").read_text() == "content"
    (tmp_path / workdir.POSTERIOR).write_text(damage)
    with pytest.raises(UserError, match="posterior.json: truncated or changed since search wrote it"):
        work.read(workdir.POSTERIOR, "sample")


def test_stage_runs_once_and_again_after_damage(tmp_path, capsys):
    work = finished_search(tmp_path)
    work.run_stage("search", config.Config(), lambda: pytest.fail("search was up to date"))
    assert "search    up to date" in capsys.readouterr().out
    (tmp_path / workdir.POSTERIOR).write_text("damaged")
    assert not work.is_current("search", config.Config())


def test_another_search_is_refused_but_later_settings_may_change(tmp_path):
    work = finished_search(tmp_path)
    with pytest.raises(UserError, match=r"holds a search with search.parameters=0.5, and this config has 0.3"):
        work.claim(config.Config(search=config.Search(parameters=0.3)))
    with pytest.raises(UserError, match=r"holds a search with search.cosine_epochs=32, and this config has 38"):
        work.claim(config.Config(retrain=config.Retrain(epochs=30)))
    # Said or left out, it is the same search.
    assert work.is_current("search", config.Config(search=config.Search(parameters=0.5, initial_drop=0.02)))
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
    work.file(f"{workdir.CHECKPOINTS}/step-000000020.npz").write_text("of the first epoch")
    with pytest.raises(UserError, match="holds a search with data.folder='right', and this config has 'other'"):
        work.claim(config.Config(data=config.Data(folder="other")))


def test_truncated_manifest_is_refused(tmp_path):
    finished_search(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(UserError, match="manifest.json: truncated"):
        workdir.Workdir(tmp_path).manifest()


def test_manifest_tells_versions_and_seed(tmp_path):
    manifest = finished_search(tmp_path).manifest()
    assert manifest["versions"]["keras"] == "3.15.1"
    assert manifest["seed"] == 0
    assert manifest["config"]["search"]["parameters"] == 0.5


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    left = [
        tmp_path / f"{workdir.TEMPORARY}7.posterior.json",
        tmp_path / "search" / f"{workdir.TEMPORARY}7.supernet.keras",
        tmp_path / "export" / "digits" / f"{workdir.TEMPORARY}export-x" / "model" / "saved_model.pb",
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
    unfinished = tmp_path / f"{workdir.TEMPORARY}7.posterior.json"
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
    file = tmp_path / workdir.MANIFEST
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="manifest.json: truncated or altered: delete it"):
        workdir.Workdir(tmp_path).manifest()


def test_sealed_files_are_read_as_written_or_refused(tmp_path):
    work = workdir.Workdir(tmp_path)
    file = work.write_sealed("a.json", {"seconds": {"layer": 0.1}})
    shape = record(seconds=mapping_of(number()))
    assert work.read_sealed("a.json", shape) == {"seconds": {"layer": 0.1}}
    for content in (file.read_text().replace("0.1", "0.2"), "", "[]", "{}", "\x80"):
        file.write_text(content)
        with pytest.raises(UserError, match="a.json: truncated or altered"):
            work.read_sealed("a.json", shape)
