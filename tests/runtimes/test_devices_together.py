"""Target on a GPU provider together with a draft on an NPU provider in a child process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import Speculation, process
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.trace import overlap


def test_gpu_and_npu_together_give_the_answers_of_the_cpu(
    pair: Path,
    on_webgpu: Callable[[], Setup],
    on_qnn: Callable[[], Setup],
    demo: mirror_edge.Model,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_webgpu()
    on_qnn()
    # A software GPU uses all cores while it compiles, which delays the NPU's emulator.
    monkeypatch.setattr(process, "_SILENCE", 60.0)
    alone, mirror = Speculation(mode="ar"), Speculation(mode="mirror", window=3, branches=8)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts[:5]]
    with mirror_edge.load(pair, target_device="webgpu", draft_device="qnn") as model:
        placed = model.placement
        for graph in ("prefix", "exit", "suffix"):
            assert set(placed[graph]) == {"WebGpuExecutionProvider"}
        assert set(placed["draft"]) == {"QNNExecutionProvider"}
        kept = model.trace.keep()
        for messages in conversations:
            wanted = demo.generate(messages, max_new_tokens=64, speculation=alone)
            found = model.generate(messages, max_new_tokens=64, speculation=mirror)
            assert found.tokens == wanted.tokens
            assert not found.stats.draft_losses
            shares = found.stats.as_dict()["placement"]
            assert all(set(nodes.values()) == {1.0} for nodes in shares.values())
    suffixes = [run for run in kept.runs if run.name == "suffix"]
    drafted = [run for run in kept.runs if run.name == "draft"]
    assert overlap(suffixes, drafted) > 0.0
