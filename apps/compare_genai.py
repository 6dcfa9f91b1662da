"""Plain decoding beside ONNX Runtime GenAI: the same graph, threads and prompt, in turn.

``python -P -m mirror_edge.apps.compare_genai GENAI_FOLDER BUNDLE``, where BUNDLE was exported from
GENAI_FOLDER. The two take turns, and what counts is the ratio pair by pair.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import program
from mirror_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from mirror_edge import Model


def compare(
    genai_folder: Annotated[Path, typer.Argument(help="A folder with genai_config.json.")],
    bundle: Annotated[Path, typer.Argument(help="The bundle exported from it.")],
    prompt: str = "Once upon a time",
    new_tokens: int = 128,
    threads: int = 1,
    repeat: int = 7,
) -> None:
    """Print tokens a second of both and their ratio, median over the pairs."""
    from mirror_edge import load

    genai = _Genai(genai_folder, threads)
    rows: list[tuple[float, float]] = []
    with load(bundle, target_threads=threads) as model:
        ids = model.tokenize(prompt)
        for turn in range(repeat + 1):
            theirs, their_rate = genai.decode(ids, new_tokens)
            ours, our_rate = _ours(model, prompt, len(theirs))
            if turn > 0:
                rows.append((our_rate, their_rate))
    ratios = [ours / theirs for ours, theirs in rows]
    figures: dict[str, Any] = {
        "tokens": len(theirs),
        "same_tokens": ours == theirs,
        "threads": threads,
        "mirror_edge_tokens_per_second": statistics.median(ours for ours, _ in rows),
        "genai_tokens_per_second": statistics.median(theirs for _, theirs in rows),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }
    typer.echo(json.dumps(figures, indent=2))


def _ours(model: Model, prompt: str, new_tokens: int) -> tuple[list[int], float]:
    from mirror_edge import Speculation

    result = model.generate(prompt, max_new_tokens=new_tokens, speculation=Speculation(mode="ar"))
    return list(result.tokens), result.stats.as_dict()["tokens_per_second"]


class _Genai:
    """Greedy decoding by ONNX Runtime GenAI."""

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            import onnxruntime_genai
        except ImportError:
            raise MissingExtraError(
                "onnxruntime-genai is not installed: pip install 'mirror-edge[export]'."
            ) from None
        self._genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = onnxruntime_genai.Model(config)

    def decode(self, ids: list[int], new_tokens: int) -> tuple[list[int], float]:
        """The tokens, and how many came a second after the first."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=len(ids) + new_tokens)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        tokens = [int(generator.get_next_tokens()[0])]
        began = time.perf_counter()
        while not generator.is_done() and len(tokens) < new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return tokens, (len(tokens) - 1) / (time.perf_counter() - began)


if __name__ == "__main__":
    program.run(program.single(compare))
