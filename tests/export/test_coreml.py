"""Core ML packages, evaluated: the logits of transformers, whatever the precision and the shape."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAMILIES, VOCABULARY, Checkpoint, random_streams, streaming_draft

from mirror_edge import bundle
from mirror_edge.bundle import Precision
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import blueprints, export
from mirror_edge.export.check import Tree
from mirror_edge.export.pipeline import Exported
from mirror_edge.runtimes.coreml.draft import CoreMLDraft
from mirror_edge.runtimes.coreml.target import CoreMLTarget
from mirror_edge.trace import Trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("coremltools")
pytestmark = pytest.mark.usefixtures("quick_conversions")

EXIT, LAYERS = 1, 2
CLOSE: dict[str, float] = {"fp32": 5e-4, "fp16": 5e-2}
CASES = [
    (family, precision)
    for family in ("llama with llama3 rope", "mistral", "qwen2 tied", "qwen3")
    for precision in CLOSE
]


@pytest.fixture(scope="module")
def made(
    checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
    quick_conversions: None,  # noqa: ARG001
) -> Callable[..., Any]:
    """A model of two layers and its bundle, once a family and precision."""
    known: dict[tuple[str, str], tuple[Any, Exported]] = {}

    def make(family: str, precision: Precision) -> tuple[Any, Exported]:
        if (family, precision) not in known:
            architecture, config = FAMILIES[family]
            source = checkpoint(architecture, **config, num_hidden_layers=LAYERS)
            folder = tmp_path_factory.mktemp("coreml") / "bundle"
            found = export(
                source, source, folder, precision=precision, exit_layer=EXIT, format="coreml"
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            known[family, precision] = model.eval(), found
        return known[family, precision]

    return make


def reference(model: Any, ids: Any) -> tuple[Any, Any]:
    """Logits [S, vocabulary] and the residual stream [S, hidden] behind the exit layer."""
    with torch.no_grad():
        out = model(torch.tensor(ids)[None], use_cache=False, output_hidden_states=True)
    return out.logits[0].numpy(), out.hidden_states[EXIT][0].numpy()


@pytest.fixture
def ids() -> list[int]:
    return np.random.default_rng(0).integers(2, VOCABULARY, 200).tolist()


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_the_target_equals_transformers(
    family: str, precision: Precision, made: Callable[..., Any], ids: list[int]
) -> None:
    model, found = made(family, precision)
    logits, residual = reference(model, ids)
    target = CoreMLTarget(bundle.read(found.folder), "evaluator", Trace())

    def window(start: int, stop: int) -> None:
        target.prefix(ids[start:stop], start, 0)
        fed = target._fed[0]
        hidden = fed.hidden[0, : stop - start].astype(np.float32)
        close(hidden, residual[start:stop])
        close(target.suffix(), logits[start:stop])

    def close(got: Any, wanted: Any) -> None:
        np.testing.assert_allclose(got, wanted, atol=CLOSE[precision], rtol=0)

    window(0, 1)  # into an empty cache
    window(0, 8)
    window(8, 9)
    close(target.prefill(ids[:150], 0), logits[149:150])  # two chunks, the second one padded
    close(target.prefill(ids[100:190], 100), logits[189:190])
    window(120, 128)  # tokens taken back
    window(128, 129)
    window(129, 132)  # padded to four
    target.prefix(ids[132:170], 132, 0)  # more than the widest program takes
    close(target.suffix(), logits[132:170])


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_the_draft_equals_transformers(
    family: str, precision: Precision, made: Callable[..., Any], ids: list[int]
) -> None:
    model, found = made(family, precision)
    logits, _ = reference(model, ids)
    draft = CoreMLDraft(bundle.read(found.folder), "evaluator", Trace())
    fed, rows = np.array(ids), np.arange(200)

    def close(got: Any, wanted: Any) -> None:
        np.testing.assert_allclose(got, wanted, atol=CLOSE[precision], rtol=0)

    close(draft.forward(fed[:1], rows[:1], 0, None, rows[:1]), logits[:1])
    close(draft.forward(fed[1:9], rows[1:9], 1, None, rows[:8]), logits[1:9])
    close(draft.forward(fed[:180], rows[:180], 0, None, np.array([135, 179])), logits[[135, 179]])
    tree, start = Tree(fed[60:66], (-1, -1, 0, 2, 0, 1)), 150
    paths = [tree.path(node) for node in range(6)]
    hidden = np.ones((6, 6), np.bool_)
    for node, path in enumerate(paths):
        hidden[node, path] = False
    places = np.array([start + len(path) - 1 for path in paths])
    guessed = draft.forward(tree.tokens, places, start, hidden, rows[:6])
    for row, text in zip(guessed, tree.texts(fed[:start]), strict=True):
        close(row, reference(model, text)[0][-1])
    draft.move([start, start + 2, start + 3], start)  # the path 0, 2, 3
    path = np.concatenate([fed[:start], tree.tokens[[0, 2, 3]], fed[:2]])
    close(
        draft.forward(fed[:2], np.array([153, 154]), 153, None, rows[:2]),
        reference(model, path)[0][-2:],
    )


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_fewer_bits_make_smaller_packages_of_the_rounded_model(
    precision: Precision, made: Callable[..., Any]
) -> None:
    full, small = made("qwen2 tied", "fp16")[1], made("qwen2 tied", precision)[1]
    checked = small.deviations
    assert checked["target, evaluated"] < 1e-2 < checked[f"the target in {precision}"]
    assert checked["draft with trees, evaluated"] < 1e-2 < checked[f"the draft in {precision}"]
    size = [sum(file.bytes for file in one.manifest.files.values()) for one in (small, full)]
    assert size[0] < size[1]
    assert small.manifest.target.model.precision == precision
    assert bundle.read(small.folder).manifest == small.manifest


def test_functions_of_a_package_share_their_weights(made: Callable[..., Any]) -> None:
    model, found = made("qwen2 tied", "fp16")
    weights = found.manifest.files[
        "target/target.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    ]
    assert weights.bytes < 1.6 * 2 * model.num_parameters()


def test_a_folder_of_the_model_builder_gives_the_same_bundle(genai: Path, tmp_path: Path) -> None:
    found = export(genai, None, tmp_path / "bundle", precision="fp16", format="coreml")
    assert found.deviations["the target as read"] < 1e-4
    assert found.manifest.target.model.architecture == "llama"


def test_a_program_that_was_converted_wrongly_is_caught(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("Llama", tie_word_embeddings=True, num_hidden_layers=LAYERS)
    monkeypatch.setattr("mirror_edge.export.programs.UNSEEN", 0.0)  # rows see what comes after them
    with pytest.raises(ExportError, match=r"the target: its logits are off by"):
        export(source, None, tmp_path / "bundle", precision="fp16", format="coreml")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(target: Path, draft: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from mirror_edge.export import export; "
        "export(*sys.argv[1:], format='coreml', on_progress=lambda *at: print(*at, flush=True))"
    )
    command = [sys.executable, "-P", "-c", program, target, draft, tmp_path / "bundle"]
    quiet = {"stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **quiet) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("Converting the target"):
                break
        assert any(tmp_path.iterdir())
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(120) != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 8}, "--context 8: must be from 16 to 256, the target's own"),
        ({"context": 257}, "--context 257: must be from 16 to 256"),
        ({"exit_layer": 3}, "--exit-layer 3: must be from 1 to 2"),
        ({"draft_precision": "int8"}, "--draft-precision int8: there is no --draft"),
    ],
)
def test_options_that_cannot_be_honoured(
    options: dict[str, Any], message: str, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        export(target, None, tmp_path / "bundle", format="coreml", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_context_is_for_core_ml_alone(target: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--context: is for --format coreml"):
        export(target, None, tmp_path / "bundle", context=128)


def test_a_bundle_is_converted_to_core_ml_only(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"demo: is a bundle already\. Only --format coreml"):
        export(bundle.demo(), None, tmp_path / "bundle")


def test_an_architecture_that_is_not_known(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("Phi3", pad_token_id=0)
    with pytest.raises(ExportError, match=r"and this is Phi3ForCausalLM\. .* --format onnx"):
        export(source, None, tmp_path / "bundle", format="coreml")


def test_a_large_draft_with_streams_is_several_packages_and_says_what_torch_says(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, layers = 2, 2
    plain = checkpoint("Llama", tie_word_embeddings=True, num_hidden_layers=LAYERS)
    source = Path(shutil.copytree(plain, tmp_path / "draft"))
    random_streams(count, layers).write(source)
    monkeypatch.setattr(blueprints, "CHUNK", 90_000)
    monkeypatch.setattr(blueprints, "WIDTHS", (1, 2))
    found = export(plain, source, tmp_path / "bundle", precision="fp32", format="coreml")
    assert found.manifest.draft is not None
    assert (found.manifest.draft.streams, found.manifest.draft.stream_layers) == (count, layers)
    names = [f"draft/draft-{at:02d}.mlpackage" for at in (1, 2)]
    assert list(found.manifest.packages) == ["target/target.mlpackage", *names]

    ids, rows = np.random.default_rng(0).integers(2, VOCABULARY, 60), np.arange(60)
    with torch.no_grad():
        main, ahead = streaming_draft(source).eval()(torch.from_numpy(ids)[None])
    draft = CoreMLDraft(bundle.read(found.folder), "evaluator", Trace())
    draft.forward(ids[:9], rows[:9], 0, None, rows[8:9])
    led, close = np.array([0, 30, 50]), {"atol": 5e-4, "rtol": 0}
    for used in (2, 1):  # over two runs of the program, and with fewer streams than there are
        got = draft.forward(ids[9:], rows[9:], 9, None, rows[:51], led, used)
        np.testing.assert_allclose(got[:51], main[0, 9:].numpy(), **close)
        wanted = ahead[0, 9 + led, :used].flatten(0, 1).numpy()
        np.testing.assert_allclose(got[51:], wanted, **close)
    np.testing.assert_allclose(
        draft.forward(ids[50:], rows[50:], 50, None, rows[:10]), main[0, 50:].numpy(), **close
    )
