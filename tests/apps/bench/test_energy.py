"""Energy counters: read, wrapped around, or said to be unknown."""

from __future__ import annotations

from pathlib import Path

from mirror_edge.apps.bench.energy import Meter, find


def zone(root: Path, name: str, spent: int, most: int = 999) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{spent}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_packages_add_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    packages = [zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 900)]
    zone(tmp_path, "intel-rapl:0:0", 50)
    meter = find(tmp_path)
    assert isinstance(meter, Meter)
    before = meter.read()
    (packages[0] / "energy_uj").write_text("400")
    (packages[1] / "energy_uj").write_text("50")  # round, at 1000
    assert meter.joules(before, meter.read()) == (300 + 150) / 1e6


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert find(tmp_path / "nowhere") == f"unknown: {tmp_path / 'nowhere'} has no counters"
    folder = zone(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").write_text("much")
    said = find(tmp_path)
    assert isinstance(said, str)
    assert said.startswith(f"unknown: {folder} cannot be read")
