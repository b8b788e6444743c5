"""`optim.precision: auto` asks the CPU what bf16 is worth, and says what it heard."""

from __future__ import annotations

import pytest
import torch

from adapterlab.errors import ConfigError
from adapterlab.speed import precision

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU is asked, not the CPU")


@pytest.mark.parametrize(
    ("instructions", "speed", "expected", "why"),
    [
        (False, 0.0, "fp32", "no bf16 instructions"),
        (True, 0.5, "fp32", "multiplies no faster"),
        (True, 1.1, "fp32", "multiplies no faster"),
        (True, 1.9, "bf16", "faster than fp32"),
        (True, 8.0, "bf16", "faster than fp32"),
    ],
)
def test_auto_takes_bf16_where_it_is_faster(monkeypatch, instructions, speed, expected, why):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: instructions)
    monkeypatch.setattr(precision, "bf16_speed", lambda: speed)
    found, said = precision.choose("auto")
    assert found == expected
    assert why in said
    assert precision.choose("bf16") == ("bf16", "as asked")
    assert precision.choose("fp32") == ("fp32", "as asked")


def test_the_speed_is_measured_once_and_is_a_ratio():
    found = precision.bf16_speed()
    assert 0 < found < 100
    assert precision.bf16_speed() == found


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="use bf16, fp32 or auto"):
        precision.choose("fp16")
