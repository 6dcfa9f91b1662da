"""Plain decoding beside ONNX Runtime GenAI: what is compared, not who is faster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mirror_edge.apps.compare_genai import compare
from mirror_edge.errors import ContextError, MissingExtraError
from mirror_edge.export import export


@pytest.fixture(scope="module")
def bundle(genai: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "bundle"
    export(genai, None, folder)
    return folder


def test_both_answer_the_same_prompts_and_ratios_are_taken_pair_by_pair(
    genai: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(genai, bundle, context=[12, 48], new_tokens=8, repeat=3, as_json=True)
    short, long = json.loads(capsys.readouterr().out)["contexts"]
    assert short["context"] <= 12 < long["context"] <= 48
    for row in (short, long):
        assert row["same_tokens"]
        for name in ("first_token_ratio", "tokens_per_second_ratio"):
            low, high = row[name]["range"]
            assert 0.0 < low <= row[name]["median"] <= high
        for who in ("ours", "genai"):
            assert row[who]["first_token_ms"] > 0.0
    for who in ("ours", "genai"):
        ratio = long[who]["tokens_per_second"] / short[who]["tokens_per_second"]
        assert long[who]["of_first"] == pytest.approx(ratio)


def test_what_is_left_at_the_longer_prompt_is_shown(
    genai: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(genai, bundle, context=[12, 24], new_tokens=4, repeat=1)
    shown = capsys.readouterr().out
    assert shown.count("the same tokens in the answers\n  first token, ms") == 2
    assert shown.count("of the tokens/s at 1") == 1


def test_a_prompt_that_does_not_fit_is_refused(genai: Path, bundle: Path) -> None:
    with pytest.raises(ContextError, match="--context 100000: with --new-tokens 128 it does not"):
        compare(genai, bundle, context=[100000])


def test_a_missing_peer_names_the_line_that_installs_it(
    genai: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        compare(genai, bundle)
