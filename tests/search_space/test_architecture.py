import json

import numpy as np
import pytest

from tfnas.common.errors import UserError
from tfnas.search_space.architecture import Architecture

ONE = Architecture({"a": [True, False, True], "b": [False, False]})


def test_json_round_trip_keeps_everything():
    again = Architecture.from_json(ONE.to_json())
    assert again == ONE and hash(again) == hash(ONE)
    assert json.loads(ONE.to_json())["layers"] == {
        "a": {"channels": 3, "kept": [0, 2]},
        "b": {"channels": 2, "kept": []},
    }


def test_counts_and_difference():
    assert (ONE.kept, ONE.total) == (2, 5)
    assert ONE != Architecture({"a": [True, True, True], "b": [False, False]})
    assert ONE != Architecture({"b": [False, False], "a": [True, False, True]})


def test_masks_are_read_only():
    with pytest.raises(ValueError):
        ONE["a"][0] = False


@pytest.mark.parametrize("mask", [[1, 0], [[True]], []])
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match="the mask of 'x' must be bool of shape"):
        Architecture({"x": np.array(mask)})


def test_damage_is_refused():
    text = ONE.to_json()
    with pytest.raises(UserError, match="not the JSON of an Architecture"):
        Architecture.from_json(text[:-5])
    with pytest.raises(UserError, match="altered"):
        Architecture.from_json(text.replace("[0, 2]", "[0, 1]"))
    with pytest.raises(UserError, match="not the JSON"):
        Architecture.from_json('{"layers": {"a": {"channels": 2, "kept": [7]}}}')
