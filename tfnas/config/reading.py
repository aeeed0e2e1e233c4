"""Settings as a config file and the command line give them: nested mappings, and text."""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import runpy
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from tfnas.common.errors import UserError, brief
from tfnas.config import fields
from tfnas.config.settings import Config


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The locked ConfigDict that a config file's `get_config` returns."""
    return ml_collections.ConfigDict(to_dict(config)).lock()


def load_file(file: str | os.PathLike[str], beside: str | os.PathLike[str] = "") -> ml_collections.ConfigDict:
    """The ConfigDict that a config file makes. A config file may start from another's::

        def get_config():
            config = load_file("cifar10_supnet_m.py", beside=__file__)
            config.supernet.width = 160
            return config

    A key that does not exist, or a value of another type, raises what ml_collections raises.

    Args:
        file: Python file with get_config().
        beside: a file from whose folder `file` is taken, if its path is relative; empty: from the current folder.
    """
    return runpy.run_path(str(pathlib.Path(beside).parent / file))["get_config"]()


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config or of one section, ready for JSON but for tuples."""
    return dataclasses.asdict(config)


def from_config_dict(config_dict: Mapping[str, Any]) -> Config:
    """Config from a ConfigDict or nested mapping. Raises UserError for unknown keys, wrong types, bad values."""
    if isinstance(config_dict, ml_collections.ConfigDict):
        config_dict = config_dict.to_dict()
    return _from_mapping(Config, config_dict, "").check()


def known_keys() -> list[str]:
    """Every settable key, dotted: 'data.name', ..., 'seed'."""
    keys = []
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.default):
            keys += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(field.default)]
        else:
            keys.append(field.name)
    return keys


def keys_named(name: str) -> list[str]:
    """The dotted keys of all settings that have this name, with or without their section; none if no setting has."""
    return [key for key in known_keys() if name in (key, key.rpartition(".")[2])]


def check_key(key: str) -> None:
    """Raises UserError if no setting has this dotted name; suggests the nearest one."""
    if key not in known_keys():
        near = difflib.get_close_matches(key, known_keys(), n=1)
        raise UserError(f"config: no key {brief(key)}" + (f"; did you mean '{near[0]}'?" if near else ""))


def parse_value(key: str, text: str) -> Any:
    """The value of one `--config.KEY=TEXT`. Raises UserError naming the key, the text and the type expected."""
    check_key(key)
    owner: Any = Config
    *section, name = key.split(".")
    for part in section:
        owner = typing.get_type_hints(owner)[part]
    expected = typing.get_type_hints(owner)[name]
    return fields.parsed(expected, text, key)


def _from_mapping(cls: Any, given: Any, prefix: str) -> Any:
    if not isinstance(given, Mapping):
        name = f"'{prefix.rstrip('.')}'" if prefix else "all of it"
        raise UserError(f"config: {name} must be a section of keys. Received: {brief(given)}")
    hints = typing.get_type_hints(cls)
    found = {}
    for key, value in given.items():
        if dataclasses.is_dataclass(section := hints.get(key)):
            found[key] = _from_mapping(section, value, f"{prefix}{key}.")
        else:
            check_key(f"{prefix}{key}")
            if key not in hints:
                place, _, name = key.rpartition(".")
                raise UserError(f"config: key '{key}' must be '{name}' in the section '{place}'")
            found[key] = fields.typed(hints[key], value, f"{prefix}{key}")
    return cls(**found)
