"""Quantised bundles under `strict`: not even rounding tells the modes apart."""

from __future__ import annotations

from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge.bundle import Precision
from mirror_edge.export import export

pytest.importorskip("torch")

PROMPTS = ("the quick brown fox", "the old oak", "a wolf sleeps", "dog", "under the lazy grey")


@pytest.mark.parametrize("precision", ["int4", "int4-mixed", "int8"])
def test_strict_answers_are_equal_in_every_mode(
    precision: Precision, target: Path, tmp_path: Path
) -> None:
    # The draft is the target in float32: it agrees often, so that windows are really used.
    made = export(target, target, tmp_path / "b", precision=precision, draft_precision="fp32")
    accepted = 0
    with mirror_edge.load(made.folder) as model:
        for prompt in PROMPTS:
            for temperature in (0.0, 0.7, 1.0):
                answers = [
                    model.generate(
                        prompt,
                        max_new_tokens=64,
                        sampling=Sampling(temperature=temperature, seed=3),
                        speculation=Speculation(mode=mode, window=window, strict=True),
                    )
                    for mode, window in (("ar", 4), ("sd", 4), ("mirror", 1), ("mirror", 7))
                ]
                assert len({answer.tokens for answer in answers}) == 1
                accepted += answers[-1].stats.as_dict()["draft_tokens_accepted"]
    assert accepted > 100
