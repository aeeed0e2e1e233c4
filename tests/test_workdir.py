import json

import pytest

from tfnas import config, workdir
from tfnas.errors import UserError


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
    with pytest.raises(UserError, match=r"holds a search with search.ell2=50.0, and this config has 80.0"):
        work.claim(config.Config(search=config.Search(ell2=80.0)))
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
    work.file(workdir.CHECKPOINT).write_text("of the first epoch")
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
    assert manifest["config"]["search"]["ell2"] == 50.0
