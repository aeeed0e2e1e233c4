"""Whatever stands in a config or a file of a run: a valid result or one line that names it, and nothing is run.

Hundreds of cases, the same each time: arbitrary JSON, valid files altered in one to three places, and bytes that were
cut, flipped or overwritten. Thousands take

    TFNAS_FUZZ=10 .venv/bin/python -m pytest -n 2 tests/test_fuzz.py
"""

import ast
import io
import json
import math
import os
import pathlib
import zlib

import numpy as np
import pytest
import rich.console
from conftest import ROOT
from evaluations import write
from fuzzing import altered, answer, contents, damaged, fuzz, numbers, text, values
from hypothesis import given
from hypothesis import strategies as st
from reports import FRONT, made

from tfnas import config
from tfnas.common import markup
from tfnas.common.errors import UserError
from tfnas.ranking import evaluation_log
from tfnas.reporting import report
from tfnas.runs import measured, sampled, stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior

POSTERIOR = Posterior((LayerGates("a", (3, 2), (0.1, 0.7), 9, 90), LayerGates("b/c", (4,), (0.4,), 25)))
ARCHITECTURE = Architecture({"a": [True, False, True], "b/c": [False, False, True, True]})

DEEP = [b"[" * 100_000, b'{"layers":' * 100_000, b'{"layers": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", b"9" * 10_000]


@pytest.mark.parametrize("data", [*DEEP, b"", b"\x00", b"\xff\xfe", b"null", b"NaN", b'{"layers": {}, "layers": {}}'])
@pytest.mark.parametrize("reader", [Posterior.from_json, Architecture.from_json])
def test_what_is_no_such_file_at_all_is_refused(reader, data):
    with pytest.raises(UserError, match="not the JSON of an? (Posterior|Architecture)"):
        reader(data)


@fuzz(400)
@given(contents(json.loads(POSTERIOR.to_json())))
def test_posterior(data):
    found = answer(Posterior.from_json, data)
    if found is None:
        return
    assert Posterior.from_json(found.to_json()) == found
    drop = np.concatenate([g.channel_drop for g in found.layers])
    assert ((drop >= 0) & (drop <= 1)).all() and 0 < drop.size < 2**25
    sizes = {name: mask.size for name, mask in found.mode().items()}
    assert sizes == {g.name: g.num_channels for g in found.layers}
    assert math.isfinite(found.expected_parameters()) and found.expected_parameters() <= found.total_parameters() + 1
    answer(found.expected_cost, "multiply_adds")


@fuzz(150)
@given(contents({"drop_probability": {"a": [0.1, 0.7], "b/c": [0.3]}}))
def test_published_posterior(data):
    found = answer(Posterior.from_reference, data, POSTERIOR)
    assert found is None or Posterior.from_json(found.to_json()) == found


@fuzz(400)
@given(contents(json.loads(ARCHITECTURE.to_json())), st.booleans())
def test_architecture(data, sign):
    if sign:  # with the digest of what it says, so that what lies behind that check is reached
        try:
            value = json.loads(data)
            keep = {
                name: np.isin(np.arange(min(layer["channels"], 1_000)), layer["kept"])
                for name, layer in value["layers"].items()
            }
            value["digest"] = Architecture(keep).digest()
        except (ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError):
            return
        data = json.dumps(value).encode()
    found = answer(Architecture.from_json, data)
    assert found is None or Architecture.from_json(found.to_json()) == found


def test_a_mask_beyond_all_memory_is_refused():
    layers = {"a": {"channels": 10**12, "kept": [0]}}
    with pytest.raises(UserError, match=r"'layers.a.channels' must be an integer in \[1, 16777216\]"):
        Architecture.from_json(json.dumps({"layers": layers, "digest": ""}))
    layers = {str(i): {"channels": 2**24, "kept": []} for i in range(1000)}
    with pytest.raises(UserError, match="at most 16,777,216 channels expected"):
        Architecture.from_json(json.dumps({"layers": layers, "digest": ""}))


DEFAULTS = json.loads(json.dumps(config.to_dict(config.Config())))


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path_factory, monkeypatch):
    """Every test here runs in an empty folder, which is still empty afterwards, and so is all around it."""
    outer = tmp_path_factory.mktemp("outer")
    (outer / "current").mkdir()
    monkeypatch.chdir(outer / "current")
    yield
    assert list(outer.rglob("*")) == [outer / "current"]


def checked(made):
    assert isinstance(made, config.Config)
    assert config.from_config_dict(json.loads(json.dumps(config.to_dict(made), allow_nan=False))) == made
    name = made.export.name or made.data.short_name
    inside = pathlib.PurePosixPath(os.path.normpath(f"/run/export/{name}/{made.export.version}"))
    assert inside.parents[1] == pathlib.PurePosixPath("/run/export") and len(os.fsencode(name)) < 255
    assert name != "results.json" and "\0" not in name


@fuzz(400)
@given(altered(DEFAULTS) | values)
def test_config(value):
    made = answer(config.from_config_dict, value)
    if made is not None:
        checked(made)


@fuzz(400)
@given(st.sampled_from(config.known_keys()), values | st.lists(numbers, max_size=3))
def test_every_key_with_any_value(key, value):
    section, _, name = key.rpartition(".")
    made = answer(config.from_config_dict, {section: {name: value}} if section else {key: value})
    if made is not None:
        checked(made)


@fuzz(300)
@given(
    st.sampled_from(config.known_keys()) | text,
    text | numbers.map(str) | st.text("0123456789.,-+eEinfa ()", max_size=9),
)
def test_command_line(key, value):
    found = answer(config.parse_value, key, value)
    if found is not None:
        section, _, name = key.rpartition(".")
        answer(config.from_config_dict, {section: {name: found}} if section else {key: found})


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/a", "../x", "a\0b", "\ud800", "a\nb", "x" * 201, "results.json"])
def test_an_export_has_a_folder_of_its_own(name):
    with pytest.raises(UserError, match="'export.name' must be (a name without|text without)"):
        config.from_config_dict({"export": {"name": name}})
    with pytest.raises(UserError, match="config: "):
        config.from_config_dict({"data": {"name": name + ("" if "/" not in name else "\0")}})


def signed(line):
    return f"{zlib.crc32(line):08x} ".encode() + line


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluations") / "e.jsonl"
    write(path)
    return path.read_bytes().splitlines()


@fuzz(200)
@given(data=st.data())
def test_evaluations(lines, tmp_path, data):
    path = tmp_path / "e.jsonl"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(b"\n".join(lines) + b"\n")))
    else:  # with a checksum that is right
        i = data.draw(st.integers(0, len(lines) - 1))
        line = data.draw(contents(json.loads(lines[i][9:]))).replace(b"\n", b" ")
        path.write_bytes(b"\n".join([*lines[:i], signed(line), *lines[i + 1 :]]) + b"\n")

    def everything():
        with evaluation_log.Evaluations(path, "run") as kept:
            for digest, known in list(kept._known.items()):
                found = kept.read(digest.hex(), known)
                assert {values.shape for values in found.values()} == {(known,)} and known > 0
            return True

    answer(everything)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return made(tmp_path_factory.mktemp("run"), front=FRONT)


@fuzz(120)
@given(data=st.data())
def test_manifest(finished, tmp_path, data):
    manifest = tmp_path / "manifest.json"
    for name in stage_table.STAGES["search"].outputs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((finished.path / name).read_bytes())
    before = (finished.path / "manifest.json").read_bytes()
    manifest.write_bytes(data.draw(contents(json.loads(before))))
    work = workdir.Workdir(tmp_path)
    found = answer(work.manifest)
    if found is not None:
        for stage in found.stages.values():
            assert all((tmp_path / name).resolve().is_relative_to(tmp_path) for name in stage.outputs)
    answer(work.claim, config.Config())
    for stage in stage_table.STAGES:
        answer(work.is_current, stage, config.Config())
    answer(work.read, stage_table.POSTERIOR, "sample")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(finished, tmp_path):
    (tmp_path / "manifest.json").write_bytes((finished.path / "manifest.json").read_bytes())
    os.mkfifo(tmp_path / stage_table.POSTERIOR)
    with pytest.raises(UserError, match="posterior.json: a file or a folder expected"):
        workdir.Workdir(tmp_path).read(stage_table.POSTERIOR, "sample")


RECORDS = {
    stage_table.RESULTS: measured.Results,
    stage_table.RANKING: sampled.Ranked,
    stage_table.FRONT: sampled.Front,
    stage_table.EVALUATION: measured.Verdict,
    stage_table.EXPORT_RESULTS: measured.Exported,
    stage_table.CANDIDATES: sampled.Candidate,
    stage_table.HISTORY: sampled.Epoch,
}


@pytest.fixture
def drawn(monkeypatch):
    """Pictures are drawn but not rendered, which takes a second."""
    from matplotlib.figure import Figure

    def drawing(draw, size, caption):
        draw(Figure(figsize=size, layout="constrained"))
        return caption

    monkeypatch.setattr(markup, "drawing", drawing)


@pytest.mark.parametrize("name", RECORDS)
def test_what_the_report_reads(finished, drawn, name):
    """An altered file that still has its shape gives the whole page; one that has not is refused by name."""
    work = finished
    valid = (work.path / name).read_bytes()
    lines = valid.splitlines() if name.endswith("jsonl") else [valid]

    # Of the first two, nearly every altered file still gives a page.
    @fuzz(10 if name in (stage_table.FRONT, stage_table.EXPORT_RESULTS) else 40)
    @given(contents(json.loads(lines[0])).map(lambda data: data.replace(b"\n", b" ")))
    def check(data):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workdir.Workdir, "read", lambda self, name, stage: self.path / name)
            (work.path / name).write_bytes(b"\n".join([data, *lines[1:]]))
            if name == stage_table.RESULTS and answer(work.read_json, name, "report", RECORDS[name]) is not None:
                report.print_table(work, config.Config(), rich.console.Console(file=io.StringIO(), width=116))
            page = answer(report.html, work, config.Config())
            assert page is None or page.startswith("<!doctype html>")

    try:
        check()
    finally:
        (work.path / name).write_bytes(valid)


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), keywords


def test_nothing_in_the_package_can_run_what_it_reads():
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    files = sorted((ROOT / "tfnas").rglob("*.py"))
    assert len(files) > 40
    for path in files:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, path
        for function, keywords in calls(tree):
            last = function.rpartition(".")[2]
            assert function not in ("eval", "exec", "compile", "__import__"), path
            assert last not in ("enable_unsafe_deserialization", "func_load"), path
            if function in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") is False, path
            ours = ("load_model",) if path.name == "saving.py" else ("saving.load_model",)
            if last in ("load_model", "model_from_json") and function not in ours:
                assert keywords.get("safe_mode") is True and path.name == "saving.py", path
