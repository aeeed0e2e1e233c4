"""What every stage reads of the settings, recorded while it runs, against the table of what it depends on."""

import dataclasses
import json

import pytest
from conftest import PUBLISHED, ROOT, tiny_config

from tfnas import config as config_lib
from tfnas.config import Config
from tfnas.runs import stage_table, workdir

SECTIONS = {field.name: type(field.default) for field in dataclasses.fields(Config)}


class Recorder:
    """Notes, by stage, each setting that is read while the stage's body runs, as 'section.name'."""

    def __init__(self, patch):
        self.reads = {}
        self._now = None
        for section, kind in SECTIONS.items():
            if dataclasses.is_dataclass(kind):
                self._watch(patch, kind, f"{section}.", {field.name for field in dataclasses.fields(kind)})
        self._watch(patch, Config, "", {name for name, kind in SECTIONS.items() if not dataclasses.is_dataclass(kind)})
        run_stage, settings = workdir.Workdir.run_stage, stage_table.settings

        def recorded(work, stage, config, body, *more, **options):
            def watched():
                self._now = self.reads.setdefault(stage, set())
                try:
                    return body()
                finally:
                    self._now = None

            return run_stage(work, stage, config, watched, *more, **options)

        def asked(config, names):
            # It reads all of them, and gives out those of these names.
            now, self._now = self._now, None
            try:
                found = settings(config, names)
            finally:
                self._now = now
            if now is not None:
                now.update(*map(expanded, names))
            return found

        patch.setattr(workdir.Workdir, "run_stage", recorded)
        patch.setattr(stage_table, "settings", asked)

    def _watch(self, patch, kind, prefix, names):
        untouched = vars(kind())

        def get(instance, name):
            value = object.__getattribute__(instance, name)
            # One that was left at, or put back to, its defaults says nothing of what the user set.
            mine = kind is not config_lib.Tune or object.__getattribute__(instance, "__dict__") != untouched
            if self._now is not None and name in names and mine:
                self._now.add(prefix + name)
            return value

        patch.setattr(kind, "__getattribute__", get, raising=False)


def expanded(name):
    kind = SECTIONS[name.partition(".")[0]]
    if "." in name or not dataclasses.is_dataclass(kind):
        return {name}
    return {f"{name}.{field.name}" for field in dataclasses.fields(kind)}


def test_the_table_names_settings_that_there_are():
    for stage, spec in stage_table.STAGES.items():
        for name in spec.settings:
            assert name in SECTIONS or name in config_lib.known_keys(), stage
    assert {*stage_table.NEUTRAL} <= {*config_lib.known_keys()}


# Further settings of tests/tiny.py, so that all branches that read some are taken by one or the other.
WAYS = {
    "paper": {
        "data": {"pad_crop": 1},
        "search": {**PUBLISHED, "epochs": 1, "gate_dense": True, "gate_pooling": True},
        "sample": {"num_candidates": 3, "num_random": 2, "num_tested": 2, "budgets": (0.7,)},
        "retrain": {"epochs": 1, "baselines": ("fixed_drop", "single_path", "magnitude_pruning")},
        "evaluate": {"max_drop": 1.0 - 1e-6},
        "tune": {"ell2": (20.0, 80.0)},
    },
    "bounds": {
        # A model that is made of Sequential models.
        "supernet": {"source": "model_kinds:sequential_of_models"},
        "data": {"flip": True, "cutout": 2, "image_size": 8, "random_resized_crop": True},
        "search": {"multiply_adds": 0.6, "epochs": 2, "guard": "warn", "noise": "example", "streams": "yes"},
        "sample": {
            "num_candidates": 4,
            "num_random": 2,
            "num_tested": 2,
            "channel_multiple": 2,
            "budgets": (0.7,),
            "resource": "multiply_adds",
            "rank_by": "accuracy",
            "racing": 0.0,
            "recalibrate": 0,
            "ensemble": 2,
        },
        "retrain": {
            "epochs": 0,
            "baselines": ("norm",),
            "baseline": False,
        },
        "training": {"accumulate": 2, "precision": "mixed_bfloat16"},
        "export": {"formats": ("litert_int8",), "uncertainty": 2, "name": "mine", "version": 2},
        "tune": {"learning_rate": (0.05, 0.2)},
    },
}


def check_baselines(rows):
    """All that were trained for comparison have rows; what is made in the size of the network found has nearly that."""
    fine_tuned = {"fixed drop, fine-tuned", "single path, fine-tuned", "magnitude pruning, fine-tuned"}
    assert fine_tuned | {"magnitude pruning", "fixed drop, mean of 2"} <= {row["name"] for row in rows}
    (found,) = (row["parameters"] for row in rows if row["name"] == "found network, retrained")
    for row in rows:
        if row["name"].startswith(("fixed drop", "magnitude")):
            assert 0.9 * found <= row["parameters"] <= found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_setting_that_a_stage_reads_is_one_that_it_depends_on(tmp_path, monkeypatch, digits_folder, way):
    from tfnas.stages import evaluate, export, report, retrain, sample, search

    monkeypatch.syspath_prepend(ROOT / "tests")
    config = tiny_config(**{**WAYS[way], "data": {**WAYS[way]["data"], "data_dir": str(digits_folder)}})
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        for stage in (search, sample, retrain, evaluate, export, report):
            stage.run(config, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 0 and list(tmp_path.glob("export/*/*/saved_model.pb"))
    if way == "paper":
        check_baselines(json.loads((tmp_path / stage_table.RESULTS).read_text())["rows"])
    reads = recorder.reads
    assert list(reads) == list(stage_table.STAGES)
    for stage, names in reads.items():
        depends = set().union(*map(expanded, stage_table.STAGES[stage].settings))
        foreseen = {*stage_table.STAGES[stage].foreseen}
        assert names - depends - foreseen - {*stage_table.NEUTRAL} == set(), stage
    # The recorder sees what surely is read.
    seen = {
        "paper": {
            "search": {"search.temperature", "search.ell2", "data.pad_crop", "seed", "distribution"},
            "sample": {"sample.racing", "sample.budgets", "sample.recalibrate"},
            "retrain": {"retrain.epochs", "sample.num_random", "search.latency_device"},
            "evaluate": {"evaluate.max_drop"},
            "export": {"export.uncertainty"},
        },
        "bounds": {
            "search": {"search.gate_step", "search.guard", "search.streams", "data.cutout", "training.accumulate"},
            "sample": {"sample.latency", "sample.resource", "sample.channel_multiple", "sample.ensemble"},
            "retrain": {"retrain.baseline", "sample.batch_size", "sample.recalibrate", "sample.channel_multiple"},
            "export": {"export.calibration", "export.version", "sample.recalibrate"},
        },
    }
    for stage, names in seen[way].items():
        assert names - reads[stage] == set(), stage
    # What retrain names one by one of sample's, it names because it reads it.
    named = {name for name in stage_table.STAGES["retrain"].settings if name.startswith("sample.")}
    read = {name for name in reads["retrain"] if name.startswith("sample.")}
    assert read == named
