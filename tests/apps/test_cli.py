"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from mirror_edge import bundle as bundles

COMMAND = str(Path(sys.executable).parent / "mirror-edge")


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def test_generate_prints_the_answer_and_its_figures() -> None:
    done = run("generate", "Tell me a story.", "--mode", "mirror", "--max-new-tokens", "12")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr.startswith("[mode mirror, ")


def test_json_is_one_object_and_the_same_text_in_every_mode() -> None:
    answers = []
    for mode in ("ar", "sd", "mirror", "auto"):
        done = run(
            "generate", str(bundles.demo()), "Hello!", "--mode", mode, "--json",
            "--temperature", "0.8", "--seed", "7", "--max-new-tokens", "24",
        )  # fmt: skip
        answers.append(json.loads(done.stdout))
    assert {answer["mode"] for answer in answers} == {"ar", "sd", "mirror", "auto"}
    assert len({tuple(answer["tokens"]) for answer in answers}) == 1
    assert len({answer["text"] for answer in answers}) == 1
    assert set(answers[0]) == {"text", "tokens", "finish_reason", "mode", "stats"}


def test_a_dash_reads_the_prompt_from_standard_input() -> None:
    there = run("generate", "-", "--raw", "--max-new-tokens", "8", stdin="Once upon a time")
    here = run("generate", "Once upon a time", "--raw", "--max-new-tokens", "8")
    assert there.stdout == here.stdout != ""


def test_inspect_shows_models_files_and_memory() -> None:
    shown = run("inspect")
    assert shown.returncode == 0
    for word in ("target", "draft", "exit after layer", "suffix.onnx", "memory at full context"):
        assert word in shown.stdout
    figures = json.loads(run("inspect", "--json").stdout)
    assert figures["memory"]["total"] > figures["files"]["target/weights.bin"]["bytes"]


def test_the_version_is_that_of_the_package() -> None:
    said = f"mirror-edge {metadata.version('mirror-edge')}\n"
    assert run("--version").stdout == said
    module = [sys.executable, "-P", "-m", "mirror_edge", "--version"]
    assert subprocess.run(module, capture_output=True, text=True, check=True).stdout == said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize("words", ["chat", "generate -", "generate Hi --max-new-tokens 2"])
def test_a_closed_stream_is_an_empty_one(words: str, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{COMMAND} {words} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if words.endswith("-") else 0)
    assert "Traceback" not in done.stderr


def test_a_path_that_cannot_be_is_one_line_of_error(tmp_path: Path) -> None:
    for words in (["inspect", "x" * 300], ["trace", "Hello", "-o", str(tmp_path / ("x" * 300))]):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("(File name too long).")


def test_a_cache_that_cannot_be_deleted_is_not_called_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path))
    (tmp_path / "costs").write_text("a file where a folder should be")
    assert_refused(run("cache", "clear"), "the cache cannot be deleted")


def test_an_option_is_named_as_it_was_typed() -> None:
    done = run("generate", "Hello", "--max-new-tokens", "0")
    assert done.stderr == "error: --max-new-tokens is 0; it must be 1 or more.\n"


@pytest.mark.parametrize("wrong", [("--max-new-tokens", "0"), ("--stop", ""), ("--window", "1024")])
def test_a_chat_refuses_at_once_what_it_could_never_answer_with(wrong: tuple[str, str]) -> None:
    assert_refused(run("chat", *wrong, stdin="Hello\n"), wrong[0])


def test_a_chat_takes_lines_that_end_as_on_windows() -> None:
    done = run("chat", "--max-new-tokens", "2", stdin="/quit\r\nHello\r\n")
    assert done.stdout.strip() == ">"


def test_help_does_not_wait_for_heavy_imports() -> None:
    loaded = (
        "import sys; from mirror_edge.apps import cli; "
        "print([m for m in ('onnxruntime', 'numpy', 'tokenizers', 'torch') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True, cwd="/"
    )
    assert said.stdout.strip() == "[]"
    assert run("--help").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_cannot_be_written_is_one_line_of_error(more: tuple[str, ...]) -> None:
    words = ["generate", "Hello", "--max-new-tokens", "4", *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    *notes, said = done.stderr.splitlines()
    assert said == "error: the output cannot be written (No space left on device)."
    assert all(note.startswith("Measuring this pair") for note in notes)


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return damage


def rewrite(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / bundles.MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "target/suffix.onnx").unlink(), "suffix.onnx: is missing"),
        (cut("target/weights.bin"), "weights.bin: has"),
        (flip("draft/draft.onnx"), "draft.onnx: its SHA-256"),
        (rewrite(schema=99), "schema version 99 is newer"),
        (lambda folder: (folder / bundles.MANIFEST).unlink(), "has no mirror_edge.json"),
        (lambda folder: (folder / bundles.MANIFEST).write_text("{"), "cannot be read as JSON"),
    ],
    ids=["missing", "truncated", "changed", "newer", "no-manifest", "no-json"],
)
def test_a_damaged_bundle_is_refused(
    demo_copy: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(demo_copy)
    for command in (["generate", str(demo_copy), "hello"], ["inspect", str(demo_copy)]):
        assert_refused(run(*command), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "hello"], "nowhere: there is no such folder"),
        ([str(bundles.demo())], "is a bundle, and there is no prompt"),
        (["./nowhere"], "no bundle at ./nowhere. Give"),
        ([""], "the prompt is empty"),
        (["word " * 3000], "tokens and the context"),
        (["a", "b", "c"], "there are 3 arguments"),
        (["hello", "--mode", "fast"], "mode is 'fast'"),
        (["hello", "--drafter", "oracle"], "drafter is 'oracle'"),
        (["hello", "--window", "0"], "window is 0"),
        (["hello", "--branches", "many"], "--branches is 'many'"),
        (["hello", "--temperature", "-1"], "temperature is -1.0"),
        (["hello", "--top-p", "0"], "--top-p is 0.0"),
        (["hello", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["hello", "--target-device", "tpu"], "unknown device 'tpu'"),
        (["hello", "--draft-device", "cpu:77"], "cannot use core 77"),
        (["hello", "--target-threads", "5000"], "--target-threads is 5000; cpu has"),
        (["hello", "--strict", "--window", "8"], "with strict it must be below 8"),
        (["hello", "--raw", "--system", "Be kind."], "--system needs the chat template"),
        (["hello", "--system", "Be kind."], "only user and assistant turns"),
        (["hello", "--template", "thinking"], "--template is 'thinking'"),
        (["hello", "--raw", "--template", "a=1"], "--template needs the chat template"),
        (["hello", "--json-schema", "{"], "the JSON schema is not JSON"),
        (["hello", "--json-schema", '{"type": "frob"}'], "the JSON schema is invalid"),
        (["hello", "--json-schema", "card.json"], "--json-schema card.json: cannot be read"),
        (["hello", "--grammar", "card.gbnf"], "--grammar card.gbnf: cannot be read"),
        (["hello", "--grammar", "a", "--json-schema", "{}"], "exclude each other"),
        (["hello", "--nonsense"], "No such option"),
    ],
)
def test_what_cannot_be_honoured_is_refused(words: list[str], said: str) -> None:
    assert_refused(run("generate", *words), said)


def test_an_answer_has_the_form_that_was_asked_for(tmp_path: Path) -> None:
    rules, schema = tmp_path / "rules.gbnf", tmp_path / "schema.json"
    rules.write_text('root ::= "fox" | "hen"', encoding="utf-8")
    schema.write_text('{"enum": ["fox", "hen"]}', encoding="utf-8")
    assert run("generate", "Fox?", "--grammar", str(rules)).stdout.strip() in {"fox", "hen"}
    for form in (str(schema), schema.read_text()):
        assert run("generate", "Fox?", "--json-schema", form).stdout.strip() in {'"fox"', '"hen"'}
    chat = run("chat", "--grammar", str(rules), stdin="Fox?\nHen?\n")
    assert re.fullmatch(r"(\W*(fox|hen)\W*){2}", chat.stdout)


def assert_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ctrl_c_ends_it_in_peace_while_commands_are_still_being_imported() -> None:
    program = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mirror_edge.apps.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from mirror_edge.apps.program import main
main()
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize("error", ["ImportError", "OptionError"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_told_to_end_it_says_so_though_an_import_made_another_error_of_it(
    name: str, error: str
) -> None:
    program = f"""
import signal
from mirror_edge.apps.program import run
from mirror_edge.errors import OptionError
def importing():
    try:
        signal.raise_signal(signal.{name})
    except BaseException:
        raise {error}("a package is missing") from None
run(importing)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + getattr(signal, name)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_told_to_end_it_does_so_at_the_next_stage_though_an_import_swallowed_the_signal(
    name: str,
) -> None:
    program = f"""
import contextlib, signal
from mirror_edge.apps.program import run
from mirror_edge.apps.progress import stages
def working():
    with stages() as show:
        show("one", 0.0)
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.{name})
        show("two", 0.0)
        print("went on")
run(working)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (128 + getattr(signal, name), "")
    assert "Traceback" not in done.stderr


def test_two_outputs_are_not_written_to_one_file(tmp_path: Path) -> None:
    one = str(tmp_path / "one")
    for words in (
        ["bench", "--limit", "1", "--json", one, "--html", one],
        ["trace", "hello", "-o", one, "--html", f"{tmp_path}/./one"],
        ["simulate", "paper-qwen3-14b", "--trace", one, "--html", one],
    ):
        assert_refused(run(*words), "two outputs cannot be written to one file")
    assert list(tmp_path.iterdir()) == []


def test_chat_refuses_at_once_what_no_line_could_be_answered_with(demo_copy: Path) -> None:
    assert_refused(run("chat", "--system", "Be kind."), "--system: The chat template refused")
    (demo_copy / "chat_template.jinja").unlink()
    manifest = demo_copy / "mirror_edge.json"
    raw = json.loads(manifest.read_text())
    del raw["files"]["chat_template.jinja"]
    manifest.write_text(json.dumps(raw))
    assert_refused(run("chat", str(demo_copy)), "This model has no chat template")


def test_a_line_that_is_no_text_is_refused_and_the_chat_goes_on() -> None:
    done = subprocess.run(
        [COMMAND, "chat", "--max-new-tokens", "4"],
        input=b"caf\xe9\nHello\n",
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert b"that line is not utf-8 text" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_a_chat_that_fills_its_context_forgets_its_oldest_turns_and_goes_on() -> None:
    lines = [f"Tell me a long story about fox number {number}." for number in range(12)]
    done = run("chat", "--context", "256", "--max-new-tokens", "40", stdin="\n".join(lines))
    assert done.returncode == 0
    assert len(re.findall("the context is full: [0-9]+ messages are forgotten", done.stderr)) > 1
    assert "error" not in done.stderr
    assert len([line for line in done.stdout.split("> ") if line.strip()]) == 12


def test_a_message_that_fits_no_context_is_refused_and_the_chat_goes_on() -> None:
    lines = ["Hello", "fox " * 200, "Hello"]
    done = run("chat", "--context", "96", "--max-new-tokens", "8", stdin="\n".join(lines))
    assert done.stderr.count("shorten it") == 1
    assert "forgotten" not in done.stderr
    first, refused, last = done.stdout.split("> ")[1:4]
    assert first.strip()
    assert not refused.strip()
    assert last.strip()


def test_an_answer_that_is_cut_off_says_so() -> None:
    done = run("chat", "--max-new-tokens", "3", stdin="Tell me a story.\n")
    assert "[cut off: --max-new-tokens]" in done.stderr


class Terminal:
    """`mirror-edge chat` on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [COMMAND, "chat", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self.own, line.encode() + b"\n")

    def read_until(self, said: str, seconds: float = 30.0) -> str:
        """What is shown up to and with `said`; the rest is kept for the next call."""
        until = time.monotonic() + seconds
        while said not in self.shown:
            left = until - time.monotonic()
            ready = select.select([self.own], [], [], max(0.0, left))[0]
            assert ready, f"{said!r} never came; shown: {self.shown!r}"
            self.shown += os.read(self.own, 4096).decode()
        before, _, self.shown = self.shown.partition(said)
        return before + said


def test_chat_answers_stops_at_ctrl_c_and_goes_on() -> None:
    terminal = Terminal("--max-new-tokens", "900", "--temperature", "1.5", "--min-p", "0")
    terminal.read_until("> ")
    terminal.type("Tell me a very long story.")
    terminal.read_until("story.\r\n")
    terminal.read_until(" ")  # the answer has begun
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("[stopped]")
    terminal.read_until("> ")
    terminal.type("/stats")
    assert '"tokens_per_second"' in terminal.read_until("> ")
    terminal.type("/reset")
    terminal.read_until("> ")
    terminal.type("/quit")
    assert terminal.process.wait(20) == 0
    os.close(terminal.own)
