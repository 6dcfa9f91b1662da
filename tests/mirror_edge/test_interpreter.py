"""Starting another process of this Python."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mirror_edge import bundle as bundles
from mirror_edge import interpreter
from mirror_edge.child import Child
from mirror_edge.devices import Device
from mirror_edge.errors import DeviceError
from mirror_edge.probe import probe


def test_another_process_finds_the_same_packages(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "only_here.py").write_text("print('found')")
    monkeypatch.syspath_prepend(folder)
    said = subprocess.run(
        interpreter.command("only_here"),
        env=interpreter.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "found\n"


def test_on_windows_the_real_interpreter_is_started_for_a_virtual_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "executable", r"C:\venv\Scripts\python.exe")
    monkeypatch.setattr(sys, "_base_executable", r"C:\Python\python.exe")
    assert interpreter.command("module")[0] == r"C:\Python\python.exe"
    assert interpreter.environment()["__PYVENV_LAUNCHER__"] == r"C:\venv\Scripts\python.exe"
    monkeypatch.setattr(sys, "_base_executable", r"C:\venv\Scripts\python.exe")
    assert "__PYVENV_LAUNCHER__" not in interpreter.environment().keys() - os.environ.keys()


def test_a_packed_program_starts_no_copy_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DeviceError, match="draft_process=False"):
        Child(bundles.demo(), Device("cpu"), 1)
    with pytest.raises(DeviceError, match="frozen program"):
        probe("cpu", "draft", bundles.demo())
