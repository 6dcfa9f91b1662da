"""One seed, one text: on real graphs no mode, window, budget or drafter changes a token."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from mirror_edge import Model, Sampling, Speculation

TOKENS = 64
DRAWN = 300

GRID = list(
    itertools.product(
        range(50),
        (0.0, 0.7, 1.0),
        (1, 2),
        (1, 4, 7),
        (1, 4, 8),
        (4, None),
        ("model", "ngram", "random"),
        ("target", "draft"),
    )
)


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.timeout(900)
def test_every_mode_gives_the_tokens_of_the_target_alone(
    demo: Model, with_random_draft: Model, prompts: list[str]
) -> None:
    @cache
    def alone(prompt: int, sampling: Sampling) -> tuple[int, ...]:
        speculation = Speculation(mode="ar")
        return demo.generate(
            asked(prompts[prompt]),
            max_new_tokens=TOKENS,
            sampling=sampling,
            speculation=speculation,
        ).tokens

    for drawn in random.Random(0).sample(GRID, DRAWN):
        prompt, temperature, seed, window, candidates, branches, drafter, head = drawn
        sampling = Sampling(temperature=temperature, seed=seed)
        model = with_random_draft if drafter == "random" else demo
        for mode in ("sd", "mirror"):
            result = model.generate(
                asked(prompts[prompt]),
                max_new_tokens=TOKENS,
                sampling=sampling,
                speculation=Speculation(
                    mode=mode,
                    window=window,
                    candidates=candidates,
                    branches=branches or "all",
                    drafter="ngram" if drafter == "ngram" else "model",
                    exit_head=head,
                ),
            )
            assert result.tokens == alone(prompt, sampling), (mode, drawn)
            assert not result.stats.draft_losses
            assert result.mode == mode


def test_filters_and_penalties_leave_one_text_too(demo: Model, prompts: list[str]) -> None:
    sampling = Sampling(
        0.9, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1, frequency_penalty=0.3, seed=4
    )
    for prompt in prompts[:6]:
        texts = {
            demo.generate(
                asked(prompt),
                max_new_tokens=TOKENS,
                sampling=sampling,
                speculation=Speculation(mode=mode),
            ).tokens
            for mode in ("ar", "sd", "mirror")
        }
        assert len(texts) == 1


def test_another_seed_gives_another_text(demo: Model, prompts: list[str]) -> None:
    texts = {
        demo.generate(
            asked(prompts[0]), max_new_tokens=32, sampling=Sampling(temperature=1.0, seed=seed)
        ).tokens
        for seed in range(5)
    }
    assert len(texts) == 5
