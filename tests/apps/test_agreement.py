"""The figures of `apps.agreement`, against the mirror loop and against a language known in full."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.answer import Decoder
from mirror_edge.apps.agreement import agreement
from mirror_edge.apps.program import single
from mirror_edge.apps.record import Record
from mirror_edge.apps.replay import Replayer
from mirror_edge.errors import ContextError, DataError, OptionError
from mirror_edge.lanes import ThreadLane
from mirror_edge.runtimes.scripted import ScriptedDraft, ScriptedTarget, blend, random_language
from mirror_edge.sampling import Sampler
from mirror_edge.trace import Trace

VOCABULARY = 24
TRUTH = random_language(1, VOCABULARY)
EXIT = blend(TRUTH, random_language(2, VOCABULARY), 0.5)
DRAFT = blend(TRUTH, random_language(3, VOCABULARY), 0.3)
PROMPT = [3, 1, 4, 1, 5]


def scripted(sampling: Sampling, new_tokens: int = 60) -> tuple[list[int], Record]:
    """All tokens of an answer on scripted devices, and its record."""
    trace, record = Trace(), Record()
    lane = ThreadLane("draft", trace)
    try:
        on = Decoder(ScriptedTarget(TRUTH, EXIT, VOCABULARY), lane, lane, trace)
        replayer = Replayer(
            on, ScriptedDraft(DRAFT, VOCABULARY), Speculation("mirror", 4, 3), frozenset()
        )
        said = replayer.answer(PROMPT, new_tokens, Sampler(sampling, VOCABULARY), record)
    finally:
        lane.close()
    return [*PROMPT, *said], record


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_is_judged_in_its_own_place(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=5), VOCABULARY)
    text, record = scripted(sampler.sampling)
    places = range(len(PROMPT) + 1, len(text))
    assert len(record.ranks) == len(record.shared) == len(places) == 59
    for index, at in enumerate(places):
        known, token = text[:at], text[at]
        draft, exits = DRAFT(known)[None], softmax(EXIT(known))
        assert record.shared[index] == (sampler.choose(draft, [at])[0] == token)
        assert record.greedy[index] == (draft.argmax() == token)
        order = np.argsort(-np.log(exits), kind="stable")[: max(8, len(exits) * (temperature > 0))]
        scores = sampler.scores(order[None], np.log(exits[order]).astype(np.float32)[None], [at])[0]
        under_noise = order[np.argsort(-scores, kind="stable")].tolist()
        assert record.ranks[index] == (under_noise.index(token) if token in under_noise else None)
        listed = order.tolist()
        assert record.plain_ranks[index] == (listed.index(token) if token in listed else None)
        if temperature > 0.0:
            p, q = softmax(TRUTH(known)), softmax(DRAFT(known))
            assert record.independent[index] == pytest.approx(q[token], rel=1e-4)
            assert record.common[index] == pytest.approx(np.minimum(p, q).sum(), rel=1e-4)
    assert len(record.common) == (59 if temperature > 0.0 else 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_replay_foretells_the_mirror_loop_under_every_budget(
    temperature: float, demo: mirror_edge.Model, prompts: list[str]
) -> None:
    sampling, record = Sampling(temperature=temperature, seed=2), Record()
    trace = Trace()
    lane = ThreadLane("draft", trace)
    decoder, drafter = demo._pair.decoder, demo._pair.drafters["model"]
    on = Decoder(decoder.target, lane, lane, trace)
    sampler, steps = Sampler(sampling, decoder.target.vocabulary), []
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts[:3]]
    try:
        replayer = Replayer(on, drafter._graph, Speculation("mirror", 4, 5), demo._text.eos)
        texts = [replayer.answer(demo.tokenize(p), 48, sampler, record) for p in asked]
    finally:
        lane.close()
        # Both caches hold rows that nobody was told of.
        decoder.cached.clear()
        drafter._rows, drafter._grown = [], []
    for branches in (1, 4, "all"):
        results = [
            demo.generate(
                prompt,
                max_new_tokens=48,
                sampling=sampling,
                speculation=Speculation("mirror", 4, 5, branches),
            )
            for prompt in asked
        ]
        assert [list(result.tokens) for result in results] == texts
        steps = [step for result in results for step in result.stats.steps]
        assert [step.proposed for step in steps] == record.proposed
        assert [step.accepted for step in steps] == record.accepted
        assert [step.committed for step in steps] == record.committed
        rate = record.figures()["hit_rate"][str(branches)]
        assert sum(step.hit is True for step in steps) == round(rate * len(record.places)) > 0


def test_the_figures_are_plain_shares() -> None:
    record = Record(
        proposed=[2, 2, 1],
        accepted=[2, 0, 1],
        committed=[3, 1, 2],
        places=[0, 5, None],
        ranks=[0, 0, 1, 7, None, 8],
        plain_ranks=[0, 1, 2, 3, 4, 5],
        shared=[True, False, True, True],
        greedy=[True, False, False, False],
    )
    figures = record.figures()
    assert (figures["tokens"], figures["steps"], figures["judged"]) == (6, 3, 4)
    assert figures["acceptance_per_token"] == 3 / 4
    assert figures["tokens_per_step"] == 2
    assert figures["coverage"] == {"1": 2 / 6, "2": 3 / 6, "4": 3 / 6, "8": 4 / 6}
    assert figures["coverage_without_noise"] == {"1": 1 / 6, "2": 2 / 6, "4": 4 / 6, "8": 1}
    hits = {budget: share * 3 for budget, share in figures["hit_rate"].items()}
    assert hits == {"1": 1, "2": 1, "4": 1, "8": 2, "16": 2, "32": 2, "all": 2}
    assert figures["draft_says_it"] == {
        "shared_noise": 3 / 4, "greedy": 1 / 4, "independent": None, "at_most": None,
    }  # fmt: skip
    assert Record().figures()["acceptance_per_token"] is None


def test_the_command_prints_a_table_or_one_object(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Hello!\n\nTell me a story.\n")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--new-tokens", "12", "--window", "3"]
    shown = CliRunner().invoke(single(agreement), options, catch_exceptions=False)
    assert "of 6; 2 prompts, γ=3, κ=8, seed 0" in shown.stdout
    for row in ("acceptance per token", "coverage Ω_8", "hit rate, R=all", "T=0", "T=1"):
        assert row in shown.stdout
    done = CliRunner().invoke(single(agreement), [*options, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["planted"] is None
    assert found["temperatures"].keys() == {"0", "1"}
    # Without the first token of each; an answer may end by itself.
    assert 2 <= found["temperatures"]["1"]["tokens"] <= 22


def test_what_cannot_be_measured_is_refused(tmp_path: Path, demo_copy: Path) -> None:
    with pytest.raises(DataError, match=r"prompts.txt: cannot be read .*"):
        agreement(prompts=tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(DataError, match=r"prompts.txt: is empty. Write one prompt per line."):
        agreement(prompts=tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("word " * 2000)
    with pytest.raises(ContextError, match=r"a prompt has 2,\d+ tokens and the context only 1,024"):
        agreement(prompts=tmp_path / "prompts.txt")
    for file in (demo_copy / "draft").iterdir():
        file.unlink()
    target = bundles.read(bundles.demo()).manifest.target
    bundles.write_manifest(demo_copy, "alone", target, None)
    with pytest.raises(OptionError, match=r"has no draft. Export the bundle with --draft."):
        agreement(demo_copy)
