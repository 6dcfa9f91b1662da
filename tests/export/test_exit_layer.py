"""The rule by which the exit layer is chosen, with numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from mirror_edge.bundle import ModelSpec
from mirror_edge.export.exit_layer import (
    Costs,
    best,
    candidates,
    costs,
    expected_step,
    rollout_bytes,
)

SPEC = ModelSpec("Llama", 2, 8, 20, 64, 1, 4, "fp32", "in_place", "float32")


@pytest.mark.parametrize(
    ("layers", "asked", "found"),
    [
        (2, None, [1]),
        (3, None, [1, 2]),
        (6, None, [2, 3, 4]),
        (6, 5, [2, 3, 4, 5]),
        (12, 3, [3, 5, 6, 7, 9]),
        (30, None, [8, 12, 15, 18, 22]),
        (30, 1, [1, 8, 12, 15, 18, 22]),
    ],
)
def test_a_handful_from_a_quarter_to_three_quarters(
    layers: int, asked: int | None, found: list[int]
) -> None:
    assert candidates(layers, asked) == found


def test_a_hidden_rollout_costs_its_misses_alone() -> None:
    # Ten layers of 1 and a head of 2 make a pass of 12; the rollout of 3 is behind a suffix of 7.
    spent = Costs(layers=10, layer=1.0, head=2.0, exit_head=0.6, rollout=3.0)
    assert expected_step(5, spent, 0.8) == pytest.approx((5.6 + 7.0 + 0.2 * 3.0) / 12)


def test_a_long_rollout_sticks_out_of_the_suffix() -> None:
    spent = Costs(layers=10, layer=1.0, head=2.0, exit_head=0.0, rollout=6.0)
    assert expected_step(8, spent, 1.0) == pytest.approx((8.0 + 6.0) / 12)


def test_an_early_exit_draft_grows_with_the_exit() -> None:
    spent = Costs(layers=10, layer=1.0, head=2.0, exit_head=0.5, rollout=None)
    rollout = 7 * 2.5
    assert expected_step(2, spent, 0.5) == pytest.approx((2.5 + rollout + 0.5 * rollout) / 12)


def test_misses_and_the_suffix_pull_in_opposite_directions() -> None:
    spent = Costs(layers=12, layer=1.0, head=0.0, exit_head=0.0, rollout=4.0)

    def chosen(covered: dict[int, float]) -> int:
        return best({e: expected_step(e, spent, c) for e, c in covered.items()}, 12)

    # Up to layer 8 the suffix hides the rollout, so more coverage is free; behind it, it is not.
    assert chosen({4: 0.5, 6: 0.7, 8: 0.8, 10: 0.85}) == 8
    assert chosen({4: 0.5, 6: 0.7, 8: 0.8, 10: 1.0}) == 8
    assert chosen({4: 0.5, 6: 0.9, 8: 0.8, 10: 0.85}) == 6


def test_equal_steps_leave_in_the_middle() -> None:
    assert best({2: 1.1, 3: 1.1 + 1e-9, 4: 1.1}, 6) == 3


def test_costs_are_the_weights_that_products_read() -> None:
    model = products(
        [("a", (8, 8)), ("b", (8, 16)), ("c", (8, 8)), ("d", (8, 16)), (None, (20, 8))]
    )
    layer, head = (8 * 8 + 8 * 16) * 4, 20 * 8 * 4
    found = costs(model, SPEC, exit_vocabulary=5, rank=2, rollout=7.0)
    assert found == Costs(2, layer, head, head / 4 + 2 * 8 * 2 * 4, 7.0)
    assert rollout_bytes(model, 0) == 7 * (2 * layer + head)
    assert rollout_bytes(model, 2) == 3.5 * (2 * layer + head)


def products(weights: list[tuple[str | None, tuple[int, int]]]) -> ModelProto:
    """Products with weights, one of activations, and last the embedding, transposed."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["scores"])]
    stored = []
    for name, shape in weights:
        read = name or "embedding"
        stored.append(numpy_helper.from_array(np.zeros(shape, np.float32), read))
        if name is None:
            nodes.append(helper.make_node("Transpose", [read], ["turned"]))
        nodes.append(helper.make_node("MatMul", ["x", name or "turned"], [f"out/{name}"]))
    return helper.make_model(helper.make_graph(nodes, "products", [], [], stored))
