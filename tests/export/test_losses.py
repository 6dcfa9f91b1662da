"""What the losses teach, on a model small enough to train in a blink."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from mirror_edge.export.losses import EXIT_WEIGHT, early_exit_loss, streaming_loss, text_loss
from mirror_edge.export.streaming import StreamingDraft


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.5,
        )
    )


def test_an_exit_at_the_last_layer_costs_what_the_model_is_unsure_of(
    model: LlamaForCausalLM,
) -> None:
    # One row, so that the rows drawn for the exits are all of them.
    windows = torch.tensor([[5, 9]])
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits[0, 0]
        sure = F.softmax(logits, dim=-1)
        entropy = -(sure * sure.log()).sum()
        # hidden_states[-1] is normed already; a second norm of weight one changes nothing.
        found = early_exit_loss(model, model, exits=(4,))(windows)
        expected = text_loss(model)(windows) + EXIT_WEIGHT * entropy
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_an_early_exit_learns_to_say_what_the_last_layer_says(model: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    windows = torch.randint(0, 32, (8, 17))
    rows = windows[:, :-1]

    def agreement() -> float:
        with torch.no_grad():
            out = model(rows, output_hidden_states=True)
            early = model.lm_head(model.model.norm(out.hidden_states[2]))
            return float((early.argmax(-1) == out.logits.argmax(-1)).float().mean())

    before = agreement()
    loss = early_exit_loss(model, model, exits=(2,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss(windows).backward()
        optimizer.step()
    assert before < 0.5
    assert agreement() > before + 0.3


def test_streams_learn_what_the_draft_says_behind_its_own_tokens(model: LlamaForCausalLM) -> None:
    """On a path of its own the draft is foreseeable; on a random text it would not be."""
    torch.manual_seed(1)
    draft = StreamingDraft(model, streams=1, layers=2, rank=16)
    draft.model.requires_grad_(False)
    windows = torch.randint(0, 32, (16, 17))
    rows = torch.arange(16)

    def right() -> float:
        with torch.no_grad():
            main, ahead = draft(windows[:, :-1])
            own = draft.continuation(windows[:, :-1], rows, main, lambda said: said.argmax(-1))
            return float((ahead.argmax(-1) == own.argmax(-1)).float().mean())

    before = right()
    optimizer = torch.optim.AdamW([p for p in draft.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        streaming_loss(draft)(windows).backward()
        optimizer.step()
    assert before < 0.1
    assert right() > before + 0.2
