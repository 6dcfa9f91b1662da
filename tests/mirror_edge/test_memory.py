"""What a bundle needs of the memory that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mirror_edge
from mirror_edge import bundle as bundles
from mirror_edge.errors import DeviceError, OptionError
from mirror_edge.memory import fitted, plan_memory

FULL = 32_768


@pytest.fixture
def bundle() -> bundles.Bundle:
    """The demo pair, if its target had a long context."""
    found = bundles.read(bundles.demo(), verify=False)
    return with_context(found, FULL)


def with_context(bundle: bundles.Bundle, context: int) -> bundles.Bundle:
    target = bundle.manifest.target
    long = replace(target, model=replace(target.model, context=context))
    return replace(bundle, manifest=replace(bundle.manifest, target=long))


def needed(bundle: bundles.Bundle, context: int) -> int:
    return plan_memory(with_context(bundle, context).manifest).total


def free(monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    monkeypatch.setattr("mirror_edge.memory.available_memory", lambda: memory)


@pytest.mark.parametrize("spare", [None, 0, 1 << 30])
def test_with_memory_enough_the_context_is_the_models_own(
    bundle: bundles.Bundle, spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = list[str]()
    free(monkeypatch, None if spare is None else needed(bundle, FULL) + spare)
    assert fitted(bundle, None, heard.append) == bundle
    assert heard == []


def test_with_less_the_context_is_what_there_is_memory_for(
    bundle: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = list[str]()
    memory = needed(bundle, FULL) - 1
    free(monkeypatch, memory)
    context = fitted(bundle, None, heard.append).manifest.target.model.context
    assert needed(bundle, context) <= 0.75 * memory < needed(bundle, context + 256)
    assert heard == [
        f"context: {context:,} of the model's 32,768 tokens, which is what memory has room for; "
        "--context sets another"
    ]


def test_a_context_that_was_asked_for_is_kept_or_refused(
    bundle: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, needed(bundle, 4096))
    assert fitted(bundle, 4096, print).manifest.target.model.context == 4096
    with pytest.raises(DeviceError, match=r"at a context of 4,097 tokens.* give a --context of"):
        fitted(bundle, 4097, print)


def test_a_model_that_has_no_room_for_a_text_is_refused(
    bundle: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, plan_memory(bundle.manifest).target_weights)
    with pytest.raises(DeviceError, match="Close other programs, or export at a lower precision"):
        fitted(bundle, None, print)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (1, "context is 1; it must be from 2 to 32,768"),
        (FULL + 1, "context is 32769; it must be from 2"),
        (4.5, "context is 4.5; it must be a whole number"),
    ],
)
def test_a_context_that_cannot_be_is_refused(
    bundle: bundles.Bundle, context: int, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fitted(bundle, context, print)


def test_the_context_of_core_ml_bundles_is_their_own(bundle: bundles.Bundle) -> None:
    coreml = replace(bundle, manifest=replace(bundle.manifest, format="coreml"))
    assert fitted(coreml, FULL, print) == coreml
    with pytest.raises(OptionError, match="export with another --context"):
        fitted(coreml, 4096, print)


def test_an_answer_ends_with_the_context() -> None:
    with mirror_edge.load(context=64) as model:
        assert model.context == 64
        answer = model.generate("Once upon a time")
        asked = answer.stats.prompt_tokens
        assert (asked + len(answer.tokens), answer.finish_reason) == (64, "length")
        with pytest.raises(mirror_edge.ContextError, match="and the context 64"):
            model.generate("Once upon a time " * 40)
