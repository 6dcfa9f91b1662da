"""A draft that forgets the middle of a long text: cheaper, and the text stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import mirror_edge
from mirror_edge import Sampling, Speculation, memory
from mirror_edge import bundle as bundles
from mirror_edge.memory import plan_memory
from mirror_edge.trunk import FIRST, Trunk

REMEMBERED = 48
STORY = [{"role": "user", "content": "Write a bedtime story about a little lighthouse."}]


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[mirror_edge.Model]:
    monkeypatch.setattr(memory, "_REMEMBERED", REMEMBERED)
    with mirror_edge.load(target_threads=1, draft_threads=1) as model:
        yield model


def test_a_trunk_knows_which_of_its_tokens_have_rows() -> None:
    tokens = list(range(100, 120))
    whole, short = Trunk(tokens, 0), Trunk(tokens, 6)
    assert list(whole.rows) == tokens
    assert list(short.rows) == [*tokens[:FIRST], *tokens[FIRST + 6 :]]
    assert (len(whole), len(short)) == (20, 14)
    assert short.before(10) == tokens[:16]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_stays_and_the_draft_still_agrees(
    forgetful: mirror_edge.Model, demo: mirror_edge.Model, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, repetition_penalty=1.1, seed=2)

    def answer(model: mirror_edge.Model, how: Speculation) -> mirror_edge.Result:
        return model.generate(STORY, max_new_tokens=300, sampling=sampling, speculation=how)

    for how in (Speculation("sd", 3), Speculation("mirror", 3, 4, 8, head_start=True)):
        short, whole = answer(forgetful, how), answer(demo, how)
        assert short.tokens == whole.tokens
        assert len(short.tokens) > 3 * REMEMBERED
        assert not short.stats.draft_losses
        agreed, all_of_it = (one.stats.as_dict()["acceptance_rate"] for one in (short, whole))
        assert agreed > 0.8 * all_of_it


def test_a_second_turn_reads_no_more_than_is_remembered(forgetful: mirror_edge.Model) -> None:
    how = Speculation("sd", 3)
    first = forgetful.generate(STORY, max_new_tokens=100, speculation=how).text
    again = [*STORY, {"role": "assistant", "content": first}, {"role": "user", "content": "Go on."}]
    result = forgetful.generate(again, max_new_tokens=60, speculation=how)
    alone = forgetful.generate(again, max_new_tokens=60, speculation=Speculation("ar"))
    assert result.tokens == alone.tokens
    assert result.stats.as_dict()["draft_tokens_accepted"] > 0
    assert not result.stats.draft_losses


def test_the_memory_plan_knows_what_a_draft_forgets() -> None:
    manifest = bundles.read(bundles.demo()).manifest
    draft = manifest.draft
    assert draft is not None
    wide = replace(draft, model=replace(draft.model, context=8192))
    cache: Callable[[int], int] = lambda rows: wide.model.cache_bytes(wide.model.layers, rows)  # noqa: E731
    plan = plan_memory(replace(manifest, draft=wide))
    assert plan.draft_cache == cache(1024 + wide.branch_rows)
    plan = plan_memory(replace(manifest, draft=wide, format="coreml"))
    assert plan.draft_cache == cache(8192 + wide.branch_rows)
