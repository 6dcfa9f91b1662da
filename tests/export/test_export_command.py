"""``mirror-edge export`` on the command line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mirror_edge import bundle
from mirror_edge.apps.export import export_command
from mirror_edge.errors import OptionError

app = typer.Typer()
app.command()(export_command)


def test_the_command_writes_a_bundle_and_says_what_it_is(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    arguments = [str(target), "--draft", str(draft), "-o", str(output), "--exit-layer", "2"]
    done = CliRunner().invoke(app, [*arguments, "--precision", "fp32"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Exit after layer 2 of 3; the exit head names 320 of 320 tokens." in done.stdout
    for name in bundle.read(output).manifest.files:
        assert re.search(rf"{name} +[\d.,]+ (kB|MB)", done.stdout)
    assert "Largest deviations found, in standard deviations of the logits:" in done.stdout
    assert "Checking the draft" in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_export_that_is_told_to_end_leaves_nothing(
    name: str, target: Path, tmp_path: Path
) -> None:
    command = [Path(sys.executable).parent / "mirror-edge", "export", target, "-o", tmp_path / "b"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(".b.partial-*/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any(tmp_path.iterdir())
        number = getattr(signal, name)
        child.send_signal(number)
        assert child.wait(60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_an_exit_layer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--exit-layer half: must be auto or a whole number"):
        export_command("a", "b", tmp_path / "bundle", exit_layer="half")


def test_an_error_before_any_stage_prints_nothing_else(tmp_path: Path) -> None:
    arguments = ["nowhere", "-o", str(tmp_path / "bundle"), "--exit-rank", "64"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, OptionError)
    assert done.output == ""


def test_the_help_names_every_default() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    shown = " ".join(done.stdout.split())
    for default in ("(default: 64)", "(default: int4; fixed for ONNX folders)", "[default: auto]"):
        assert default in shown


def test_the_command_is_light_to_import() -> None:
    program = (
        "import sys; import mirror_edge.apps.export, mirror_edge.export; "
        "print({'onnx', 'onnxruntime', 'torch', 'transformers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"
