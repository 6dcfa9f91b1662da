"""The check of a device's attention."""

from __future__ import annotations

import pytest

from mirror_edge.devices import Device
from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.onnx import trial
from mirror_edge.runtimes.onnx.providers import CPU, Place


def test_the_cpus_attention_matches_numpys() -> None:
    place = CPU.place(Device("cpu"))
    assert trial._error(place, 64) < 1e-5
    assert trial.widest_run(place) == trial.ANY


@pytest.mark.parametrize(("errors", "widest"), [({64: 1e-6}, trial.ANY), ({64: 0.3, 24: 1e-6}, 24)])
def test_a_device_is_used_up_to_the_width_at_which_it_is_correct(
    errors: dict[int, float], widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_error", lambda _, rows: errors[rows])
    monkeypatch.setattr(Place, "memory", "its own")
    assert trial.widest_run.__wrapped__(CPU.place(Device("cpu"))) == widest


def test_a_device_that_is_always_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_error", lambda *_: 0.3)
    monkeypatch.setattr(Place, "memory", "its own")
    with pytest.raises(DeviceError, match=r"its attention is off by 0\.3"):
        trial.widest_run.__wrapped__(CPU.place(Device("cpu")))
