"""The whole of it: target on a GPU provider, draft on an NPU provider in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import Speculation, process
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.trace import overlap


def test_gpu_and_npu_at_once_say_what_the_cpu_says(
    pair: Path,
    on_webgpu: Callable[[], Setup],
    on_qnn: Callable[[], Setup],
    demo: mirror_edge.Model,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_webgpu()
    on_qnn()
    # A GPU in software takes all cores while it compiles, and the NPU's emulator has to wait.
    monkeypatch.setattr(process, "_SILENCE", 60.0)
    alone, mirror = Speculation(mode="ar"), Speculation(mode="mirror", window=3, branches=8)
    said = [[{"role": "user", "content": prompt}] for prompt in prompts[:5]]
    with mirror_edge.load(pair, target_device="webgpu", draft_device="qnn") as model:
        placed = model.placement
        for graph in ("prefix", "exit", "suffix"):
            assert set(placed[graph]) == {"WebGpuExecutionProvider"}
        assert set(placed["draft"]) == {"QNNExecutionProvider"}
        kept = model.trace.keep()
        for messages in said:
            wanted = demo.generate(messages, max_new_tokens=64, speculation=alone)
            found = model.generate(messages, max_new_tokens=64, speculation=mirror)
            assert found.tokens == wanted.tokens
            assert not found.stats.draft_losses
            shares = found.stats.as_dict()["placement"]
            assert all(set(nodes.values()) == {1.0} for nodes in shares.values())
    suffixes = [run for run in kept.runs if run.name == "suffix"]
    drafted = [run for run in kept.runs if run.name == "draft"]
    assert overlap(suffixes, drafted) > 0.0
