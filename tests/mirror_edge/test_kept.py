"""What is kept between runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import kept

KEY = {"bundle": "one", "driver": "2.7"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "blob.bin").write_bytes(b"compiled")
        (folder / "deep" / "part.bin").write_bytes(b"more")


def test_an_entry_is_made_once_and_found_again(cache: Path) -> None:
    make = Maker()
    first = kept.entry("compiled", KEY, make)
    assert kept.entry("compiled", dict(reversed(KEY.items())), make) == first
    assert make.calls == 1
    assert (first / "deep" / "part.bin").read_bytes() == b"more"
    assert [path.name for path in (cache / "compiled").iterdir()] == [first.name]


@pytest.mark.parametrize("changed", [{"driver": "2.8"}, {"bundle": "two"}, {"options": "fast"}])
def test_another_key_is_another_entry(changed: dict[str, str]) -> None:
    make = Maker()
    assert kept.entry("compiled", KEY, make) != kept.entry("compiled", KEY | changed, make)
    assert make.calls == 2


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no list", "bad list", "odd list"])
def test_a_damaged_entry_is_noticed_and_made_again(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    place = kept.entry("compiled", KEY, make)
    blob, listed = place / "blob.bin", place / "entry.json"
    match damage:
        case "changed":
            blob.write_bytes(b"compileX")
        case "cut":
            blob.write_bytes(b"comp")
        case "gone":
            blob.unlink()
        case "no list":
            listed.unlink()
        case "bad list":
            listed.write_text("{")
        case "odd list":
            listed.write_text(json.dumps({"files": ["blob.bin"]}))
    with caplog.at_level(logging.WARNING, "mirror_edge"):
        assert kept.entry("compiled", KEY, make) == place
    assert make.calls == 2
    assert blob.read_bytes() == b"compiled"
    assert "rebuilding it" in caplog.text


def test_what_fails_leaves_nothing_behind(cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"half")
        raise RuntimeError("the compiler gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        kept.entry("compiled", KEY, fails)
    assert list((cache / "compiled").iterdir()) == []


def test_of_two_at_once_one_entry_remains(cache: Path) -> None:
    inner = Maker()

    def slower(folder: Path) -> None:
        kept.entry("compiled", KEY, inner)
        Maker()(folder)

    place = kept.entry("compiled", KEY, slower)
    assert inner.calls == 1
    assert [path.name for path in (cache / "compiled").iterdir()] == [place.name]


def test_an_entry_can_be_found_and_renewed() -> None:
    assert kept.find("experience", KEY) is None
    for said in ("first", "second"):
        place = kept.renew(
            "experience", KEY, lambda folder, said=said: (folder / "said").write_text(said)
        )
        assert kept.find("experience", KEY) == place
        assert (place / "said").read_text() == said
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    (place / "said").write_text("third")
    assert kept.find("experience", KEY) is None


def test_a_value_is_recalled_as_it_was_last_written() -> None:
    assert kept.recall("costs", KEY, dict) is None
    for value in ({"a": 1.5}, {"b": [1, None]}):
        kept.write("costs", KEY, value)
        assert kept.recall("costs", KEY, dict) == value
    assert kept.recall("costs", KEY | {"driver": "2.8"}, dict) is None
    assert kept.recall("costs", KEY, lambda value: value["a"]) is None


def test_clearing_deletes_what_is_kept_and_nothing_else(cache: Path) -> None:
    kept.entry("compiled", KEY, Maker())
    (cache / "mine.txt").write_text("not theirs")
    assert kept.clear() > len(b"compiledmore")
    assert [path.name for path in cache.iterdir()] == ["mine.txt"]
    assert kept.clear() == 0


@pytest.mark.parametrize(
    ("platform", "variable", "place"),
    [
        ("linux", "XDG_CACHE_HOME", "mirror-edge"),
        ("win32", "LOCALAPPDATA", "mirror-edge"),
        ("darwin", "HOME", "Library/Caches/mirror-edge"),
    ],
)
def test_the_folder_is_where_the_system_keeps_such_things(
    platform: str, variable: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIRROR_EDGE_CACHE")
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert kept.folder() == tmp_path / place


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a service in a container."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MIRROR_EDGE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.usefixtures("_no_home")
def test_a_named_folder_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.folder() == tmp_path / "mirror-edge"


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("named", [None, ""])
def test_without_a_home_nothing_can_be_kept(
    named: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", named)
    for keep in (kept.entry, kept.renew):
        with pytest.raises(OSError, match="MIRROR_EDGE_CACHE"):
            keep("compiled", KEY, Maker())
    kept._warn.cache_clear()
    for _ in range(2):
        kept.write("costs", KEY, 1)
    assert kept.recall("costs", KEY, int) is None
    assert caplog.text.count("nothing can be kept for the next start: there is no home") == 1


@pytest.mark.usefixtures("_no_home")
def test_mode_auto_answers_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with mirror_edge.load(target_device="cpu", draft_device="cpu") as model:
        assert model.generate("Hello", max_new_tokens=8).mode == "auto"
