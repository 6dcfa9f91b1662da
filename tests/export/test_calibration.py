"""Exit heads fitted to text: what they gain, what is written of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import VOCABULARY, Checkpoint
from typer.testing import CliRunner

from mirror_edge import bundle
from mirror_edge.apps.cli import app
from mirror_edge.errors import DataError, MissingExtraError, OptionError
from mirror_edge.export import export, sample
from mirror_edge.export.coverage import POOL
from mirror_edge.export.pipeline import Exported
from mirror_edge.export.reference import session
from mirror_edge.noise import gumbel
from mirror_edge.text import Text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS = 4
KAPPAS = (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def deep(checkpoint: Checkpoint) -> Path:
    return checkpoint("Llama", tie_word_embeddings=True, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations and plain text, of words drawn at random."""
    words = Path(__file__).parents[1].joinpath("prompts.txt").read_text().split()
    random = np.random.default_rng(0)

    def some(count: int) -> str:
        return " ".join(random.choice(words, count))

    rows: list[Any] = [{"m": [some(12), some(24)]} for _ in range(60)]
    rows += [{"text": some(40)} for _ in range(20)]
    file = tmp_path_factory.mktemp("text") / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def made(deep: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle whose exit head was fitted, quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mirror_edge.export.exit_fit._MOST", 300)
        output = tmp_path_factory.mktemp("made") / "bundle"
        return export(deep, None, output, precision="fp32", calibrate=[text], exit_rank=32)


def held_out(made: Exported, text: Path) -> list[Any]:
    """The texts that coverage was measured on."""
    sampled = sample.texts_of(sample.draw([text]), Text.read(made.folder), 256, 10**9)
    return sample.divide(sampled)[0]


def test_a_fitted_head_covers_more_than_the_logit_lens_at_every_layer(made: Exported) -> None:
    assert made.calibration is not None
    covered = made.calibration.coverage
    assert {layer for layer, _ in covered} == {1, 2, 3}
    for layer in (1, 2, 3):
        for heat in (0.0, 1.0):
            plain, fitted = (covered[layer, head][heat] for head in ("plain", "fitted"))
            assert list(plain) == list(KAPPAS)
            assert sorted(fitted.values()) == list(fitted.values())
            # At temperature 1 the pool that the noise ranks is what limits so flat a model.
            assert fitted[8] > plain[8] + (0.05 if heat == 0 else 0)
    assert covered[3, "fitted"][0.0][8] > covered[1, "fitted"][0.0][8]


def test_the_table_is_in_the_bundle_and_inspect_shows_it(made: Exported) -> None:
    read = bundle.read(made.folder)
    assert made.calibration is not None
    assert json.loads(read.file(bundle.COVERAGE).read_text()) == made.calibration.content()
    done = CliRunner().invoke(app, ["inspect", str(made.folder), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["coverage"] == made.calibration.content()
    done = CliRunner().invoke(app, ["inspect", str(made.folder)], catch_exceptions=False)
    assert "fitted" in done.stdout


def test_the_fitted_shares_are_those_of_the_bundles_own_graphs(made: Exported, text: Path) -> None:
    spec = made.manifest.target
    prefix, exits, suffix = (
        session(made.folder / f"target/{name}.onnx") for name in ("prefix", "exit", "suffix")
    )
    cache = np.zeros((1, spec.model.kv_heads, 0, spec.model.head_size), np.float32)
    hits = {heat: np.zeros(len(KAPPAS)) for heat in (0.0, 1.0)}
    count = 0
    for number, ids in enumerate(held_out(made, text)):
        feeds = {
            "seqlens_k": np.array([len(ids) - 1], np.int32),
            "total_sequence_length": np.array(len(ids), np.int32),
        }
        names = [f"past_key_values.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
        first = dict.fromkeys(names[: 2 * spec.exit_layer], cache)
        second = dict.fromkeys(names[2 * spec.exit_layer :], cache)
        (hidden,) = prefix.run(["hidden"], {"input_ids": ids[None], **feeds, **first})
        wanted = {"hidden": hidden, "rows": np.arange(len(ids))}
        (logits,) = suffix.run(["logits"], {**wanted, **feeds, **second})
        found, chances = exits.run(None, {"hidden": hidden, "top": np.array([POOL])})
        tokens = np.arange(VOCABULARY, dtype=np.uint32)
        for row in range(len(ids)):
            (noise,) = gumbel(number, [row + 1], tokens)
            for heat, extra in ((0.0, 0 * noise), (1.0, noise)):
                truth = int(np.argmax(logits[0, row] + extra))
                order = np.argsort(-(chances[0, row] + extra[found[0, row]]), kind="stable")
                place = [*found[0, row][order], truth].index(truth)
                hits[heat] += [place < kappa for kappa in KAPPAS]
            count += 1
    assert made.calibration is not None
    assert count == made.calibration.held_out
    shares = made.calibration.coverage[spec.exit_layer, "fitted"]
    for heat, hit in hits.items():  # float16 rows may turn a near tie
        np.testing.assert_allclose(list(shares[heat].values()), hit / count, atol=2.5 / count)


def test_the_plain_shares_are_those_of_the_models_hidden_states(
    made: Exported, deep: Path, text: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32).eval()
    hits, count = np.zeros(len(KAPPAS)), 0
    for ids in held_out(made, text):
        with torch.no_grad():
            said = model(torch.from_numpy(ids)[None], output_hidden_states=True)
            early = model.lm_head(model.model.norm(said.hidden_states[2][0]))
        truth = said.logits[0].argmax(-1, keepdim=True)
        places = (early > early.gather(1, truth)).sum(-1).numpy()
        hits += [(places < kappa).sum() for kappa in KAPPAS]
        count += len(places)
    assert made.calibration is not None
    shares = made.calibration.coverage[2, "plain"][0.0]
    np.testing.assert_allclose(list(shares.values()), hits / count, atol=2.5 / count)


def test_the_command_measures_a_bundle_on_any_text(
    made: Exported, text: Path, tmp_path: Path
) -> None:
    ids = held_out(made, text)
    kept = {tuple(part) for part in ids}
    lines = [
        line
        for document, line in zip(
            sample.documents([text]), text.read_text().splitlines(), strict=True
        )
        if tuple(sample.texts_of([document], Text.read(made.folder), 256, 10**9)[0][0]) in kept
    ]
    file = tmp_path / "held-out.jsonl"
    file.write_text("\n".join(lines))
    command = ["coverage", str(file), "--bundle", str(made.folder)]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert made.calibration is not None
    assert found["rows"] == made.calibration.held_out
    shares = made.calibration.coverage[made.manifest.target.exit_layer, "fitted"][0.0]
    measured = found["coverage"][0]
    assert (measured["head"], measured["temperature"]) == ("own", 0.0)
    for kappa, share in shares.items():
        assert measured["shares"][str(kappa)] == pytest.approx(share, abs=2.5 / found["rows"])
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert f"{found['rows']:,} tokens" in done.stdout


def test_auto_leaves_where_the_expected_step_is_shortest(made: Exported) -> None:
    assert made.calibration is not None
    steps = made.calibration.steps
    # Without a draft model no layer is better than another, and half is as good as any.
    assert max(steps.values()) - min(steps.values()) < 1e-9
    assert made.manifest.target.exit_layer == LAYERS // 2
    assert "exit head" in made.deviations


def test_a_quantised_target_is_fitted_by_its_own_graph(
    deep: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror_edge.export.exit_fit._MOST", 200)
    monkeypatch.setattr("mirror_edge.export.exit_tokens.FULL_VOCABULARY", 128)
    made = export(deep, deep, tmp_path / "bundle", precision="int4", calibrate=[text], exit_layer=3)
    assert made.manifest.target.exit_layer == 3
    assert made.manifest.target.exit_vocabulary < VOCABULARY
    assert made.calibration is not None
    covered = made.calibration.coverage
    assert covered[3, "fitted"][0.0][8] > covered[3, "plain"][0.0][8]
    tokens = made.calibration.exit.tokens
    assert tokens is not None
    assert len(tokens) < 140
    assert {*tokens.tolist()} != {*range(128)}


def test_what_cannot_be_honoured_is_refused(
    deep: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "bundle"
    for rank in (7, 129):
        with pytest.raises(OptionError, match=rf"--exit-rank {rank}: must be from 8 to 128"):
            export(deep, None, output, calibrate=[text], exit_rank=rank)
    with pytest.raises(OptionError, match=r"--exit-rank 64: there is no --calibrate"):
        export(deep, None, output, exit_rank=64)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": 7}\n')
    with pytest.raises(DataError, match=r"broken.jsonl:2"):
        export(deep, None, output, calibrate=[text, broken])
    with pytest.raises(DataError, match=r"absent.txt: cannot be read"):
        export(deep, None, output, calibrate=[tmp_path / "absent.txt"])
    broken.write_text('{"text": "too little"}\n{"text": "of it"}\n')
    with pytest.raises(DataError, match=r"--calibrate: \d+ tokens in 2 documents are too few"):
        export(deep, None, output, precision="fp32", calibrate=[broken])
    monkeypatch.setattr("mirror_edge.export.pipeline.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"--calibrate: needs the package torch"):
        export(deep, None, output, calibrate=[text])
    assert not output.exists()
    assert list(output.parent.glob("*")) == []
