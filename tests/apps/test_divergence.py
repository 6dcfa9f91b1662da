"""How far the targets of bundles are from a reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mirror_edge import bundle as bundles
from mirror_edge.apps.divergence import compared, divergence
from mirror_edge.errors import OptionError

TEXT = "Once upon a time there was a fox who could not sleep. He asked the moon for a story.\n"


@pytest.fixture
def story(tmp_path: Path) -> Path:
    file = tmp_path / "story.txt"
    file.write_text(20 * TEXT)
    return file


def test_logits_are_compared_row_by_row() -> None:
    third = np.log(1 / 3)
    reference = np.tile(np.log([0.5, 0.25, 0.25]), (100, 1)).astype(np.float32)
    found = np.full((100, 3), 7.0, np.float32)
    found[50:, 2] = 8.0
    shifted = np.exp(np.array([7.0, 7.0, 8.0]) - 8)
    shifted = np.log(shifted / shifted.sum())
    result = compared(reference, found, np.zeros(101, np.int64))
    assert result.loss == pytest.approx((-third - shifted[0]) / 2)
    p = np.array([0.5, 0.25, 0.25])
    kl = [p @ (np.log(p) - third), p @ (np.log(p) - shifted)]
    assert result.kl == pytest.approx(np.mean(kl))
    assert result.same == 0.5


def test_a_target_that_was_changed_is_off_and_the_reference_is_not(
    changed_target: Path, story: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    divergence([bundles.demo(), changed_target], [story], rows=256, as_json=True)
    own, other = json.loads(capsys.readouterr().out)
    assert (own["kl"], own["same"]) == (0.0, 1.0)
    assert 0 < own["loss"] < np.log(4096)
    assert other["kl"] > 0.01
    assert other["same"] < 1.0


def test_a_bundle_of_another_tokenizer_is_refused(demo_copy: Path, story: Path) -> None:
    spec, file = bundles.read(demo_copy, verify=False).manifest, demo_copy / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    bundles.write_manifest(demo_copy, "other", spec.target, spec.draft)
    with pytest.raises(OptionError, match=rf"^{demo_copy}: its tokenizer is not that of"):
        divergence([bundles.demo(), demo_copy], [story], rows=64)
