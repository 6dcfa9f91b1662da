"""What commands do to the paths that they write to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mirror_edge.apps.output import check, write
from mirror_edge.errors import OptionError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("before")
    write(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "report.json", tmp_path / "link"
    path.write_text("before")
    link.symlink_to(path)
    check(link)
    write(link, "after")
    assert link.is_symlink()
    assert path.read_text() == "after"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    check(pipe)
    write(pipe, "after")
    reader.join(10.0)
    assert heard == ["after"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_takes_nothing_stays_a_device() -> None:
    with pytest.raises(OptionError, match=r"/dev/full: cannot be written \(No space left"):
        write(Path("/dev/full"), "after" * 5000)
    assert Path("/dev/full").is_char_device()


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.symlink_to(tmp_path / "nowhere" / "file")
    for path, why in (
        (tmp_path, "it is a folder"),
        (tmp_path / "nowhere" / "file", "there is no folder"),
        (lost, "there is no folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(OptionError, match=why):
            check(path)
    with pytest.raises(OptionError, match="two outputs cannot be written to one file"):
        check(tmp_path / "a", tmp_path / "." / "a")
