"""Records what each stage reads of the settings while it runs."""

import dataclasses

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
