"""search refuses, before it trains, what sample could not draw."""

import pytest
from conftest import tiny_config

from tfnas.common.errors import UserError
from tfnas.stages import search
from tfnas.training import networks


@pytest.mark.parametrize("setting", [{"channel_multiple": 10_000}, {"parameters": 1e-6}])
def test_bounds_out_of_reach_at_sampling_are_refused_before_training(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(networks, "warmed_up", lambda *_: pytest.fail("trained"))
    (name,) = setting
    with pytest.raises(UserError, match=f"out of reach: .* sample is to draw candidates with .*sample.{name}="):
        search.run(tiny_config(search={"parameters": 0.3}, sample=setting), tmp_path)
