"""The correction of an exit head: kept where it foresees rows that it was not fitted to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from mirror_edge.export.exit_fit import fit


@pytest.mark.parametrize("early", [False, True])
def test_a_correction_is_kept_only_where_it_foresees_better(early: bool) -> None:
    draw = np.random.default_rng(0)
    final = draw.normal(size=(4096, 16)).astype(np.float32)
    head = draw.normal(size=(16, 24)).astype(np.float32)
    lost = final @ draw.normal(size=(16, 4)) @ draw.normal(size=(4, 16)) / 8
    rows = (final - lost).astype(np.float32) if early else final
    found = fit(rows, final, head, np.zeros(24, np.float32), 8, lambda _: None)
    if not early:
        assert found is None
        return
    assert found is not None

    def right(given: np.ndarray) -> float:
        return float(np.mean((given @ head).argmax(-1) == (final @ head).argmax(-1)))

    assert right(found.apply(rows)) > right(rows) + 0.1
