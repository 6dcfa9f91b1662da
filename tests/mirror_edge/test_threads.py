"""How the processor's cores are shared out."""

from __future__ import annotations

import dataclasses

import pytest

from mirror_edge import bundle as bundles
from mirror_edge import threads
from mirror_edge.bundle import FileSpec, Manifest
from mirror_edge.devices import Device
from mirror_edge.errors import OptionError
from mirror_edge.threads import share

CORES = 8


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: frozenset(range(CORES)))


@pytest.fixture(scope="module")
def small() -> Manifest:
    return bundles.read(bundles.demo(), verify=False).manifest


def with_draft_of(size: int, manifest: Manifest) -> Manifest:
    files = {**manifest.files, "draft/weights.bin": FileSpec(size, "")}
    return dataclasses.replace(manifest, files=files)


def test_two_on_one_processor_have_all_its_cores_each(small: Manifest) -> None:
    large = with_draft_of(10**9, small)
    assert share(large, Device("cpu"), Device("cpu"), None, None) == (CORES, CORES)


def test_a_small_draft_has_fewer_threads(small: Manifest) -> None:
    assert share(small, Device("cpu"), Device("cpu"), None, None) == (CORES, 1)
    middling = with_draft_of(20 << 20, small)
    assert share(middling, Device("cpu"), Device("cpu"), None, None) == (CORES, 3)


def test_a_core_is_left_to_whoever_drives_another_device(small: Manifest) -> None:
    large = with_draft_of(10**9, small)
    assert share(large, Device("cpu"), Device("qnn"), None, None).target == CORES - 1
    assert share(large, Device("webgpu"), Device("cpu"), None, None).draft == CORES - 1
    alone = dataclasses.replace(small, draft=None)
    assert share(alone, Device("cpu"), Device("qnn"), None, None).target == CORES


def test_a_model_that_is_confined_keeps_to_its_cores_and_has_them_alone(small: Manifest) -> None:
    large = with_draft_of(10**9, small)
    cpu, some = Device("cpu"), Device("cpu", (0, 1, 2))
    assert share(large, some, cpu, None, None) == (3, CORES - 3)
    assert share(large, cpu, some, None, None) == (CORES - 3, 3)
    every = Device("cpu", tuple(range(CORES)))
    assert share(large, every, cpu, None, None) == (CORES, 1)


def test_what_is_asked_for_is_given_or_refused(small: Manifest) -> None:
    cpu = Device("cpu")
    assert share(small, cpu, cpu, 2, CORES) == (2, CORES)
    for asked, said in (
        ((0, None), "target_threads is 0; it must be 1 or more"),
        ((CORES + 1, None), f"target_threads is {CORES + 1}; cpu has {CORES} cores"),
        ((None, -1), "draft_threads is -1"),
    ):
        with pytest.raises(OptionError, match=said):
            share(small, cpu, cpu, *asked)
    with pytest.raises(OptionError, match="qnn manages its own threads"):
        share(small, cpu, Device("qnn"), None, 1)
    with pytest.raises(OptionError, match=r"draft_threads is 4; cpu:.* has 3 cores"):
        share(small, cpu, Device("cpu", (0, 1, 2)), None, 4)
