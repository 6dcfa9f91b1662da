"""How much memory there is, by what the system says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror_edge.free_memory import available_memory

GB = 1 << 30


def test_this_machine_has_some() -> None:
    found = available_memory()
    assert found is None or 1 << 20 < found < 1 << 50


def machine(root: Path, group: str, **files: str) -> Path:
    """A Linux with 16 GB available, and a process in `group`; `files` by path, __ for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {32 << 20} kB\nMemFree: 1 kB\nMemAvailable: {16 << 20} kB\n"
    )
    (root / "proc/self/cgroup").write_text(group)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_of_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("limit", "used", "cached", "left"),
    [
        (f"{8 * GB}", 4 * GB, 1 * GB, 6 * GB),
        (f"{64 * GB}", 4 * GB, 0, 16 * GB),
        ("max", 4 * GB, 1 * GB, 16 * GB),
        (f"{2 * GB}", 4 * GB, 0, 0),
        ("nonsense", 0, 0, 16 * GB),
    ],
)
@pytest.mark.parametrize("seen", ["own__", ""])
def test_a_container_has_what_its_limit_leaves(
    limit: str, used: int, cached: int, left: int, seen: str, tmp_path: Path
) -> None:
    """Wherever it sees its own group."""
    files = {
        f"{seen}memory_of_max": limit,
        f"{seen}memory_of_current": str(used),
        f"{seen}memory_of_stat": f"anon 5\ninactive_file {cached}\nactive_file {GB}\n",
    }
    assert available_memory(machine(tmp_path, "0::/own\n", **files)) == left


def test_the_older_kind_of_container_has_too(tmp_path: Path) -> None:
    files = {
        "memory__own__memory_of_limit_in_bytes": str(4 * GB),
        "memory__own__memory_of_usage_in_bytes": str(3 * GB),
        "memory__own__memory_of_stat": "inactive_file 0\nactive_file 0\n"
        f"total_inactive_file {GB // 4}\n"
        f"total_active_file {GB // 4}\n",
        "memory__memory_of_limit_in_bytes": "9223372036854771712",
        "memory__memory_of_usage_in_bytes": str(9 * GB),
        "memory__memory_of_stat": "total_inactive_file 0\ntotal_active_file 0\n",
    }
    groups = "9:cpuset:/own\n4:memory:/own\n0::/\n"
    assert available_memory(machine(tmp_path, groups, **files)) == 1.5 * GB
