"""The torch draft with streams, against the plain model and against one stream at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import SHAPE, streaming_draft

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export.streaming import StreamingDraft, stream_mask

LENGTH = 11


def make(architecture: str = "Llama", **config: Any) -> Any:
    torch.manual_seed(0)
    settings = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **config})
    return getattr(transformers, f"{architecture}ForCausalLM")(settings).eval()


def with_streams(model: Any, streams: int = 2, layers: int = 1, rank: int = 4) -> StreamingDraft:
    """Streams that are far from their start, where `up` is zero."""
    torch.manual_seed(1)
    draft = StreamingDraft(model, streams=streams, layers=layers, rank=rank).eval()
    with torch.no_grad():
        draft.offset.normal_()
        draft.up.normal_(std=0.3)
    return draft


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 320, (2, LENGTH)))


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_main_logits_are_the_models_own(architecture: str, layers: int, ids: torch.Tensor) -> None:
    config = {"sliding_window": None} if architecture == "Mistral" else {}
    model = make(architecture, **config)
    main, _ = with_streams(model, layers=layers)(ids)
    torch.testing.assert_close(main, model(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_a_stream_alone_in_an_explicit_sequence_gives_the_same_logits(
    architecture: str, layers: int, ids: torch.Tensor
) -> None:
    """Row i's streams behind its own prefix, as one causal sequence at positions 0..i, i+1..i+k."""
    draft = with_streams(make(architecture), streams=3, layers=layers)
    model = draft.model
    _, found = draft(ids)
    stack = model.model.layers
    for i in (0, 4, LENGTH - 1):
        positions = torch.arange(i + 1)[None]
        rows = model.model.embed_tokens(ids[:, : i + 1])
        rotary = model.model.rotary_emb(rows, position_ids=positions)
        for layer in stack[: len(stack) - layers]:
            rows = layer(rows, attention_mask=None, position_embeddings=rotary)
        own = [
            rows[:, -1] + draft.offset[k] + rows[:, -1] @ draft.down @ draft.up[k]
            for k in (0, 1, 2)
        ]
        rows = torch.cat([rows, torch.stack(own, dim=1)], dim=1)
        rotary = model.model.rotary_emb(rows, position_ids=torch.arange(i + 4)[None])
        for layer in stack[len(stack) - layers :]:
            rows = layer(rows, attention_mask=None, position_embeddings=rotary)
        wanted = model.lm_head(model.model.norm(rows))[:, i + 1 :]
        torch.testing.assert_close(found[:, i], wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_streams_of_a_few_positions_are_those_of_all(ids: torch.Tensor) -> None:
    draft = with_streams(make())
    at = torch.tensor([1, 6, 7])
    (main, some), (all_main, every) = draft(ids, at), draft(ids)
    torch.testing.assert_close(main, all_main, atol=2e-5, rtol=0)
    torch.testing.assert_close(some, every[:, at], atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_continuation_is_what_the_model_says_behind_its_own_tokens(ids: torch.Tensor) -> None:
    model = make()
    draft, at = with_streams(model, streams=3), torch.tensor([0, 4, LENGTH - 1])
    said = model(ids).logits[:, at]
    found = draft.continuation(ids, at, said, lambda logits: logits.argmax(-1))
    for n, i in enumerate(at.tolist()):
        text = ids[:, : i + 1]
        for k in range(draft.streams):
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
            wanted = model(text).logits[:, -1]
            torch.testing.assert_close(found[:, n, k], wanted, atol=2e-5, rtol=0)


def test_the_mask_row_by_row() -> None:
    """Every pair of rows against the rule, in words."""
    at, streams, length = [0, 2, 3], 2, 4
    mask = stream_mask(length, torch.tensor(at), streams)[0, 0]
    rows = [(p, 0) for p in range(length)] + [(p, k) for p in at for k in (1, 2)]
    for i, (p, k) in enumerate(rows):
        for j, (q, m) in enumerate(rows):
            sees_main = m == 0 and q <= p
            sees_own_stream = k > 0 and m > 0 and p == q and m <= k
            assert bool(mask[i, j]) == (sees_main or sees_own_stream)


def test_only_the_streams_are_trained_when_the_model_is_frozen(ids: torch.Tensor) -> None:
    model = make()
    before = model(ids).logits.detach().clone()
    draft = StreamingDraft(model, streams=2)
    draft.model.requires_grad_(False)
    trained = {name for name, p in draft.named_parameters() if p.requires_grad}
    assert trained == {"offset", "down", "up"}
    optimizer = torch.optim.AdamW([p for p in draft.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        draft(ids)[1].square().mean().backward()
        optimizer.step()
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_draft(ids: torch.Tensor, tmp_path: Path) -> None:
    draft = with_streams(make("Qwen3"), layers=2)
    draft.model.save_pretrained(tmp_path)
    draft.stored_streams().write(tmp_path)
    again = streaming_draft(tmp_path).eval()
    assert again.layers == 2
    for one, other in zip(draft(ids), again(ids), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"streams": 0}, "streams is 0; it must be 1 or more"),
        ({"streams": 2, "layers": 4}, "layers is 4; it must be 1 to 3"),
        ({"streams": 2, "rank": 65}, "rank is 65; it must be 1 to 64"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StreamingDraft(make(), **numbers)


def test_other_architectures_and_sliding_windows_are_refused() -> None:
    with pytest.raises(ExportError, match="streams are supported for Llama, Mistral, Qwen2, Qwen3"):
        StreamingDraft(make("Olmo2"), streams=2)
    with pytest.raises(ExportError, match="sliding window"):
        StreamingDraft(make("Mistral", sliding_window=16), streams=2)


def test_it_trains_in_bf16(ids: torch.Tensor) -> None:
    draft = StreamingDraft(make(), streams=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        main, streams = draft(ids)
    assert main.dtype == streams.dtype == torch.bfloat16
    (main.float().mean() + streams.float().mean()).backward()
    assert all(p.grad is not None for p in (draft.offset, draft.up))
