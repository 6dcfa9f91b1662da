"""A streaming draft on its real runtime: the same branches, cache and text as without streams."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Checkpoint, random_streams
from typer.testing import CliRunner

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.apps import program
from mirror_edge.apps.rollouts import rollouts
from mirror_edge.devices import Device
from mirror_edge.export import export
from mirror_edge.growth import Guesses
from mirror_edge.hypotheses import Root
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.runtimes.scripted import Language, ScriptedDraft
from mirror_edge.sampling import Sampler
from mirror_edge.trace import Trace

STREAMS, LAYERS, DEPTH, WINDOWS = 2, 2, 5, 1000
SHARE = 0.7
"""How often a planted stream is right."""
CLOSE = 1e-4
"""Of two scores that rounding may put in either order."""


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and a draft like it with random streams."""
    work = tmp_path_factory.mktemp("streaming")
    target = checkpoint("Llama", tie_word_embeddings=True)
    draft = Path(shutil.copytree(target, work / "draft"))
    random_streams(STREAMS, LAYERS).write(draft)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(target, draft, work / "bundle", precision="fp32")
    return work / "bundle"


def opened(folder: Path) -> OnnxDraft:
    return cpu().open_draft(bundles.read(folder), Device("cpu"), 1, Trace())


class Foreseeing(ScriptedDraft):
    """The real draft, with streams that are often right.

    Its streams run too, and what they leave in the cache; only what they say is scripted. The
    scripted draft also sees to it that every row is shown one token for each position.
    """

    def __init__(self, draft: OnnxDraft) -> None:
        branch_rows = draft.slots - draft.context
        streams = [self._stream(k) for k in range(1, draft.streams + 1)]
        nothing = np.zeros(draft.vocabulary)
        super().__init__(
            lambda _: nothing, draft.vocabulary, draft.context, branch_rows, streams=streams
        )
        self._draft = draft
        self._known: dict[tuple[int, ...], int] = {}

    def forward(self, *arguments: Any) -> Any:
        wanted = arguments[4]
        logits = self._draft.forward(*arguments).copy()
        logits[len(wanted) :] = super().forward(*arguments)[len(wanted) :]
        return logits

    def move(self, slots: Sequence[int], start: int) -> None:
        self._draft.move(slots, start)
        super().move(slots, start)

    def truth(self, before: Sequence[int], tokens: Sequence[int]) -> None:
        """From now on the streams know how `before` goes on."""
        for at, token in enumerate(tokens):
            self._known[*before, *tokens[:at]] = token

    def _stream(self, k: int) -> Language:
        def logits(tokens: Sequence[int]) -> Any:
            text, right = list(tokens), np.random.default_rng([k, *tokens]).random() < SHARE
            for _ in range(k):
                text.append(self._known.get(tuple(text), 0))
            said = self._known.get(tuple(text), 0) if right else 1
            return np.where(np.arange(self.vocabulary) == said, 1e4, 0.0)

        return logits


def random_window(draw: np.random.Generator, vocabulary: int) -> tuple[list[int], ...]:
    """Prompt, drafted tokens, and the row and token of each root, row by row."""
    prompt = draw.integers(2, vocabulary, draw.integers(3, 30))
    drafted = draw.integers(2, vocabulary, draw.integers(0, 5))
    rows = np.sort(draw.integers(0, len(drafted) + 1, draw.integers(1, 4)))
    return prompt.tolist(), drafted.tolist(), rows.tolist(), list(range(5, 5 + len(rows)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("siblings", [0, 3])
def test_every_branch_is_the_one_without_streams(
    siblings: int, right: bool, temperature: float, folder: Path
) -> None:
    """Over 1,000 windows with one guess a stream and 1,000 with several; with streams that are
    never right and with ones that often are.
    """
    plain = opened(folder)
    foreseeing = Foreseeing(opened(folder))
    graph = foreseeing if right else opened(folder)
    alone = ModelDrafter(plain, Guesses(0))
    together = ModelDrafter(graph, Guesses(STREAMS, siblings))
    sampler = Sampler(Sampling(temperature=temperature, seed=5), plain.vocabulary)
    draw, close = np.random.default_rng(int(temperature)), 0
    for _ in range(WINDOWS // 4):
        prompt, drafted, rows, tokens = random_window(draw, plain.vocabulary)
        roots = [Root(row, token) for row, token in zip(rows, tokens, strict=True)]
        alone.prefill(prompt)
        expected = alone.rollout([], drafted, roots, DEPTH, sampler)
        for (row, token), branch in expected:
            foreseeing.truth([*prompt, *drafted[:row], token], branch)
        together.prefill(prompt)
        found = together.rollout([], drafted, roots, DEPTH, sampler)
        assert [branch.root for branch in found] == roots
        for one, other in zip(expected, found, strict=True):
            if one != other:
                before = [*prompt, *drafted[: one.root.row], one.root.token]
                assert is_tie(plain, sampler, before, one.tokens, other.tokens)
                close += 1
    assert close <= WINDOWS // 100


def is_tie(
    draft: OnnxDraft, sampler: Sampler, before: list[int], one: Sequence[int], other: Sequence[int]
) -> bool:
    """Whether two texts part at two tokens that rounding may put in either order."""
    assert len(one) == len(other)
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    text = [*before, *one[:at]]
    rows = np.arange(len(text))
    scores = draft.forward(np.array(text), rows, 0, None, rows[-1:])[0].copy()
    if sampler.sampling.temperature:
        scores = scores / sampler.sampling.temperature + sampler.noise(len(text))
    return bool(scores.max() - min(scores[one[at]], scores[other[at]]) < CLOSE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_holds_main_rows_only(temperature: float, folder: Path) -> None:
    """After hits, partial hits and misses the rows are those of a draft without streams."""
    plain = opened(folder)
    real = opened(folder)
    foreseeing = Foreseeing(real)
    alone, together = ModelDrafter(plain, Guesses(0)), ModelDrafter(foreseeing)
    sampler, draw = (
        Sampler(Sampling(temperature=temperature), plain.vocabulary),
        np.random.default_rng(3),
    )
    committed = draw.integers(2, plain.vocabulary, 12).tolist()
    for drafter in (alone, together):
        drafter.prefill(committed)
    drafted: tuple[int, ...] = ()
    told: list[int] = []
    for _ in range(25):
        roots = [Root(j, int(draw.integers(2, plain.vocabulary))) for j in range(len(drafted) + 1)]
        expected = alone.rollout(told, drafted, roots, DEPTH, sampler)
        for (row, token), branch in expected:
            foreseeing.truth([*committed, *drafted[:row], token], branch)
        assert together.rollout(told, drafted, roots, DEPTH, sampler) == expected
        row = int(draw.integers(0, len(drafted) + 1))
        told = [*drafted[:row], roots[row].token]
        committed += told
        drafted = expected[row].tokens[: int(draw.integers(0, DEPTH + 1))]
        if draw.random() < 0.2:
            drafted = tuple(draw.integers(2, plain.vocabulary, 3).tolist())
        rows = len(committed) + len(drafted)
        for drafter in (alone, together):
            drafter.prefill([*committed, *drafted])
        for name, buffer in plain._cache._buffers.items():
            other = real._cache._buffers[name]
            np.testing.assert_allclose(other[:, :, :rows], buffer[:, :, :rows], atol=1e-5)
        told = []
        for drafter in (alone, together):
            drafter.prefill(committed)


def test_the_program_that_measures_rollouts_finds_the_same_branches(
    folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the quick brown fox\nthe old oak\n")
    asked = [str(folder), "--prompts", str(prompts)]
    asked += ["--new-tokens", "12", "--window", "4", "--json"]
    ran = CliRunner().invoke(program.single(rollouts), asked)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["window"], list(found["temperatures"])) == (4, ["0", "1"])
    for by_streams in found["temperatures"].values():
        ways = [(of["streams"], of["siblings"]) for of in by_streams]
        assert ways == [*((streams, 0) for streams in range(1 + STREAMS)), (STREAMS, 11)]
        assert len({(of["rollouts"], of["branches"]) for of in by_streams}) == 1
        assert by_streams[0]["branches"] > by_streams[0]["rollouts"] > 0
        assert all(of["differing"] <= 1 for of in by_streams)  # a tie, on some processor
        assert by_streams[0]["many"]["forwards"] == by_streams[0]["single"]["forwards"] == 4
        for of in by_streams[1:]:
            assert 1 + 3 / (1 + STREAMS) <= of["single"]["forwards"] <= of["many"]["forwards"] <= 4
    shown = CliRunner().invoke(program.single(rollouts), asked[:-1])
    assert "tokens a forward" in shown.stdout


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_seed_is_one_text_with_a_streaming_draft(temperature: float, folder: Path) -> None:
    with mirror_edge.load(folder, target_threads=1, draft_threads=1) as model:
        assert model.bundle.manifest.draft is not None
        assert model.bundle.manifest.draft.streams == STREAMS

        def answer(mode: Any, window: int) -> tuple[int, ...]:
            return model.generate(
                "the quick brown fox",
                max_new_tokens=40,
                sampling=Sampling(temperature=temperature, seed=7),
                speculation=Speculation(mode=mode, window=window, strict=True),
            ).tokens

        alone = answer("ar", 1)
        assert all(answer(mode, w) == alone for mode in ("sd", "mirror") for w in (1, 3, 7))
