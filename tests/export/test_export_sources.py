"""Where models come from: folders of several kinds and the hub; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import Checkpoint, write_genai_folder

from mirror_edge import bundle
from mirror_edge.bundle import Format
from mirror_edge.errors import ExportError, MissingExtraError, OptionError
from mirror_edge.export import export
from mirror_edge.export.checkpoint import read_checkpoint
from mirror_edge.export.reference import checkpoint_logits
from mirror_edge.export.source import locate

PROGRAM = """
import sys
for absent in sys.argv[4].split(","):
    sys.modules[absent] = None
from mirror_edge.errors import MirrorEdgeError
from mirror_edge.export import export
assert not {"onnx", "torch", "transformers", "onnxruntime"} & {
    name for name, module in sys.modules.items() if module is not None
}
try:
    made = export(*sys.argv[1:4])
except MirrorEdgeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(made.manifest.target.model.architecture)
"""


def in_a_fresh_process(
    target: Path | str,
    draft: Path | str,
    output: Path,
    *,
    absent: str = "none",
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, target, draft, output, absent],
        capture_output=True,
        text=True,
        cwd=output.parent,
    )


def test_a_genai_folder_needs_no_torch(genai: Path, tmp_path: Path) -> None:
    absent = "torch,transformers,huggingface_hub,onnxruntime_genai,safetensors"
    done = in_a_fresh_process(genai, genai, tmp_path / "bundle", absent=absent)
    assert (done.returncode, done.stdout) == (0, "llama\n"), done.stderr
    manifest = bundle.read(tmp_path / "bundle").manifest
    assert (manifest.target.model.precision, manifest.target.model.layers) == ("fp32", 3)


def test_tensors_may_have_the_names_of_our_inputs(genai: Path, tmp_path: Path) -> None:
    draft = write_genai_folder(tmp_path / "draft")
    names = {name for node in onnx.load(draft / "model.onnx").graph.node for name in node.output}
    assert "rows" in names
    assert export(genai, draft, tmp_path / "bundle").deviations["draft, with trees"] < 1e-4


def test_weights_outside_of_the_folder_are_refused(
    genai: Path, draft: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(genai, tmp_path / "genai"))
    (folder / "model.onnx.data").rename(tmp_path / "outside")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ExportError, match=r"points to a file outside of it: \.\./outside"):
        export(folder, draft, tmp_path / "bundle")


@pytest.mark.parametrize("absent", ["onnx", "torch", "transformers", "onnxruntime_genai"])
def test_a_missing_package_is_named_with_its_install_line(
    absent: str, target: Path, draft: Path, tmp_path: Path
) -> None:
    done = in_a_fresh_process(target, draft, tmp_path / "bundle", absent=absent)
    assert done.returncode == 1
    assert done.stderr.startswith("MissingExtraError: ")
    assert absent in done.stderr
    assert "pip install 'mirror-edge[export]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "a/b/c", ".hidden"])
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(
    name: str, draft: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"TARGET {name}: there is no such folder"):
        export(name, draft, tmp_path / "bundle")


def test_folders_that_are_no_models_are_refused(target: Path, draft: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ExportError, match=r"empty: is not a model: it has no config.json"):
        export(empty, draft, output)
    shutil.copy(target / "config.json", empty)
    with pytest.raises(ExportError, match=r"it has no weights \(\*.safetensors\) or model.onnx"):
        export(target, empty, output)
    with pytest.raises(OptionError, match=r"is a file. Give the folder"):
        export(target / "config.json", draft, output)
    (empty / "config.json").write_text("{")
    with pytest.raises(ExportError, match=r"config.json: cannot be read as JSON"):
        export(empty, draft, output)
    assert not output.exists()


def test_a_genai_folder_without_its_parts_is_refused(
    genai: Path, draft: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "genai"
    shutil.copytree(genai, folder)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"model.onnx.data: is missing"):
        export(folder, draft, tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(b"\x08\x96damaged")
    with pytest.raises(ExportError, match=r"model.onnx: cannot be read as an ONNX graph"):
        export(folder, draft, tmp_path / "bundle")
    (folder / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"names model.onnx, which is not there"):
        export(folder, draft, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def edited(source: Path, folder: Path, file: str, **changes: object) -> Path:
    """A copy of a model's folder with some of the entries of one of its files changed."""
    shutil.copytree(source, folder)
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": []}, None),
        ({"model": None}, None),
        ({"model": ["decoder"]}, "genai_config.json: model must be an object"),
        ({"model": {"decoder": 1}}, "genai_config.json: decoder must be an object"),
        ({"model": {"decoder": {"filename": 5}}}, "genai_config.json names 5, which is not there"),
        ({"search": "greedy"}, "genai_config.json: search must be an object"),
    ],
)
def test_a_genai_configuration_of_the_wrong_kind(
    genai: Path, tmp_path: Path, changes: dict[str, object], message: str | None
) -> None:
    folder = edited(genai, tmp_path / "genai", "genai_config.json", **changes)
    with pytest.raises(ExportError, match=message or "nor its configuration gives its"):
        export(folder, None, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("format", ["onnx", "coreml"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": "x"}, "num_hidden_layers is 'x'; it must be a whole number"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0; it must be a whole number"),
        ({"text_config": "x"}, "text_config must be an object"),
    ],
)
def test_a_configuration_of_the_wrong_kind(
    target: Path, tmp_path: Path, changes: dict[str, object], message: str, format: Format
) -> None:
    folder = edited(target, tmp_path / "model", "config.json", **changes)
    with pytest.raises(ExportError, match=f"config.json: {message}. Copy the model folder again"):
        export(folder, None, tmp_path / "bundle", format=format)


@pytest.mark.parametrize("token", ["</s>", [1, None], -1, True])
def test_an_end_token_that_is_none(target: Path, tmp_path: Path, token: object) -> None:
    folder = edited(target, tmp_path / "model", "generation_config.json", eos_token_id=token)
    with pytest.raises(ExportError, match=r"generation_config.json: eos_token_id must be a token"):
        _ = locate(folder, "TARGET", lambda *_: None).eos_token_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "has sizes that are not numbers"),
        ({"intermediate_size": "wide"}, "has sizes that are not numbers"),
        ({"rope_parameters": {"rope_type": "linear"}}, "does not define how its rotary embeddings"),
        ({"rope_parameters": [1]}, "does not define how its rotary embeddings"),
    ],
)
def test_a_configuration_that_core_ml_programs_cannot_be_made_of(
    target: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = edited(target, tmp_path / "model", "config.json", **changes)
    with pytest.raises(ExportError, match=f"config.json {message}"):
        read_checkpoint(locate(folder, "TARGET", lambda *_: None), 32)


def test_an_index_of_weights_that_is_none(target: Path, tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    folder = edited(target, tmp_path / "model", index, weight_map=["model.safetensors"])
    with pytest.raises(ExportError, match=f"{index}: weight_map must be an object"):
        read_checkpoint(locate(folder, "TARGET", lambda *_: None), 32)


def test_core_ml_bundles_have_no_fixed_draft_beside(target: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--draft-for qnn: is for --format onnx"):
        export(target, target, tmp_path / "bundle", format="coreml", draft_for="qnn")


def test_core_ml_bundles_need_coremltools_before_anything_is_read(
    target: Path, tmp_path: Path
) -> None:
    stages: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'mirror-edge\[.*coreml\]'"):
            export(target, None, tmp_path / "b", format="coreml", on_progress=stages.__setitem__)
    assert (stages, list(tmp_path.iterdir())) == ({}, [])


def test_a_model_that_transformers_cannot_run(target: Path, tmp_path: Path) -> None:
    folder = edited(target, tmp_path / "model", "config.json", num_attention_heads=3)
    source = locate(folder, "TARGET", lambda *_: None)
    with pytest.raises(ExportError, match="model: transformers cannot run this model"):
        checkpoint_logits(source, [np.arange(4)], exact=True)


def test_a_download_that_broke_off_is_named(target: Path, draft: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(target, tmp_path / "target"))
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model\.safetensors: is damaged .* Download it again"):
        export(source, draft, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_precision_of_an_onnx_folder_cannot_be_changed(
    genai: Path, draft: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"--precision int4: .* is an ONNX graph in fp32 already"):
        export(genai, draft, tmp_path / "bundle", precision="int4")
    with pytest.raises(OptionError, match=r"--draft-precision int8: .* in fp32 already"):
        export(genai, genai, tmp_path / "bundle", draft_precision="int8")


def test_weights_inside_a_graph_move_to_a_file_that_the_graphs_share(
    genai: Path, draft: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "inline"
    shutil.copytree(genai, folder)
    onnx.save(onnx.load(folder / "model.onnx"), folder / "model.onnx", save_as_external_data=False)
    (folder / "model.onnx.data").unlink()
    inline = export(folder, draft, tmp_path / "one", precision=None, draft_precision="fp32")
    outside = export(genai, draft, tmp_path / "two", precision=None, draft_precision="fp32")
    for name in ("prefix", "suffix", "exit"):
        assert (inline.folder / f"target/{name}.onnx").stat().st_size < 40_000
        one, two = (
            {
                tensor.name: onnx.numpy_helper.to_array(tensor)
                for tensor in onnx.load(made.folder / f"target/{name}.onnx").graph.initializer
            }
            for made in (inline, outside)
        )
        assert one.keys() == two.keys()
        for key, values in one.items():
            np.testing.assert_array_equal(values, two[key])


def test_the_target_must_be_cut_between_two_layers(
    checkpoint: Checkpoint, target: Path, draft: Path, genai: Path, tmp_path: Path
) -> None:
    for source, layer in ((target, 0), (target, 3), (genai, 7), (target, -1)):
        wanted = f"--exit-layer {layer}: must be from 1 to 2 for a target of 3 layers"
        with pytest.raises(OptionError, match=wanted):
            export(source, draft, tmp_path / "bundle", exit_layer=layer)
    single = checkpoint("Llama", num_hidden_layers=1, tie_word_embeddings=True)
    with pytest.raises(ExportError, match="only one layer"):
        export(single, draft, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    made = export(target, single, tmp_path / "bundle", precision="fp32")
    assert made.manifest.draft is not None
    assert made.manifest.draft.model.layers == 1
    assert made.manifest.target.exit_layer == 1


def test_padded_vocabularies_of_other_widths_are_fine(
    checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    wide = checkpoint("Llama", num_hidden_layers=2, tie_word_embeddings=True, vocab_size=352)
    made = export(target, wide, tmp_path / "bundle", precision="fp32")
    assert made.manifest.draft is not None
    assert made.manifest.draft.model.vocabulary == 352
    assert made.manifest.target.model.vocabulary == 320


def test_end_tokens_are_collected_from_every_file(
    genai: Path, target: Path, draft: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(target, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.6}))
    made = export(folder, draft, tmp_path / "one", precision="fp32")
    written = json.loads((made.folder / "generation_config.json").read_text())
    assert written == {"eos_token_id": [7, 9, 1], "temperature": 0.6}

    made = export(genai, draft, tmp_path / "two", draft_precision="fp32")
    written = json.loads((made.folder / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1]
    assert written["do_sample"] is False
