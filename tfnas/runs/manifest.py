"""The state of a working directory: the record of `manifest.json`. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from tfnas.common.schema import mapping_of, number


def _setting(value: Any, place: str) -> Any:
    """The schema of a section's settings, or of a single one."""
    return mapping_of(_setting)(value, place) if isinstance(value, Mapping) else value


Settings = Annotated[dict[str, Any], mapping_of(_setting)]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A stage that has ended.

    Attributes:
        settings: that it depends on, as it ran with them, by section.
        inputs: files of earlier stages that it read, with the digests that their writers had recorded; and by setting,
            digests of the user's own.
        outputs: files that it wrote, each with its digest.
        versions: of Python, this project and the packages that it ran with.
        seconds: that it took.
    """

    settings: Settings
    inputs: dict[str, str]
    outputs: dict[str, str]
    versions: dict[str, str]
    seconds: Annotated[float, number(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class Begun:
    """A stage that runs or was interrupted, the digest of what it depends on, and the versions it ran with so far."""

    stage: str
    key: str
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The state of a working directory: the file `manifest.json`, which has its own digest too.

    Attributes:
        config: the settings of the last command that worked in the folder, by which another search is refused.
        stages: those that have ended, by name.
        begun: the one that has not.
    """

    config: Settings | None = None
    stages: dict[str, Finished] = dataclasses.field(default_factory=dict)
    begun: Begun | None = None
