"""Checks of written Core ML packages: their programs, evaluated as a decoder runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mirror_edge.export.check import Tree, compare
from mirror_edge.runtimes.coreml.draft import CoreMLDraft
from mirror_edge.runtimes.coreml.program import EVALUATOR, open_program
from mirror_edge.runtimes.coreml.target import CoreMLTarget
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.export.programs import ExitHead

    Ids = NDArray[np.int64]
    Rows = NDArray[np.float32]

__all__ = ["check_draft", "check_exit", "check_target", "limit"]

_LIMIT = {"float32": 1e-3, "float16": 5e-2}
_PROMPT, _WINDOW = 0.7, 0.8
"""Shares of the text up to the end of the prompt, and up to the end of the window."""


def limit(dtype: str) -> float:
    """How far a program may deviate from the decoder it was made from; see `check.compare`."""
    return _LIMIT[dtype]


def check_target(bundle: Bundle, ids: Ids, expected: Rows) -> float:
    """Check a prompt, a window, rejected tokens and single steps; the deviation."""
    target = CoreMLTarget(bundle, EVALUATOR, Trace())
    text, length = ids.tolist(), len(ids)
    prompt, window = int(_PROMPT * length), int(_WINDOW * length)
    found = [target.prefill(text[:prompt], 0)]
    target.prefix(text[prompt:window], prompt, 0)
    found.append(target.suffix())
    target.prefix(text[:3], window, 0)
    target.suffix()
    for at in range(window, length):
        target.prefix(text[at : at + 1], at, 0)
        found.append(target.suffix())
    target.close()
    dtype = bundle.manifest.target.model.dtype
    return compare("the target", np.concatenate(found), expected[prompt - 1 :], limit(dtype))


def check_exit(bundle: Bundle, head: ExitHead) -> float:
    """Compare the exit head's candidates with the decoder's; the deviation."""
    spec = bundle.manifest.target
    program = open_program(bundle.file(spec.exit), "exit", EVALUATOR)
    widest = bundle.manifest.packages[spec.exit].functions["exit"].shapes("hidden")[-1]
    rows = np.random.default_rng(0).standard_normal(widest).astype(spec.model.dtype)
    outputs = program.predict({"hidden": rows})
    with torch.no_grad():
        ids, logprobs = head(torch.from_numpy(rows).float())
    named = np.zeros((2, widest[1], spec.model.vocabulary), np.float32)
    np.put_along_axis(named[0], outputs["exit_ids"][0], outputs["exit_logprobs"][0], axis=-1)
    np.put_along_axis(named[1], ids[0].long().numpy(), logprobs[0].numpy(), axis=-1)
    # Near the end of the list, rounding may change which tokens are on it.
    both = (named != 0).all(axis=0)
    return compare("the exit head", named[0][both][None], named[1][both][None], limit("float16"))


def check_draft(bundle: Bundle, ids: Ids, tree: Tree, expected: list[Rows]) -> float:
    """Check a prompt, a tree of guesses, then the text in its place; the deviation.

    `expected` are the logits of `ids`, then of each of the tree's texts, and then, for a draft with
    streams, those of the streams of `ids`, [length, s, vocabulary].
    """
    draft = CoreMLDraft(bundle, EVALUATOR, Trace())
    length, size = len(ids), len(tree.parents)
    rows = np.arange(length)
    found = [draft.forward(ids, rows, 0, None, rows[length // 2 :])]
    hidden = np.ones((size, length + size), np.bool_)
    hidden[:, :length] = False
    for node in range(size):
        hidden[node, [length + other for other in tree.path(node)]] = False
    depths = np.array([len(tree.path(node)) - 1 for node in range(size)])
    found.append(draft.forward(tree.tokens, length + depths, length, hidden, np.arange(size)))
    found.append(draft.forward(ids[-2:], rows[-2:], length - 2, None, np.arange(2)))
    guessed = expected[1 : 1 + size]
    wanted = [expected[0][length // 2 :], *(text[-1:] for text in guessed), expected[0][-2:]]
    if draft.streams:
        some = np.array([length // 2, length - 1])
        draft.forward(ids[:4], rows[:4], 0, None, rows[3:4])
        found.append(
            draft.forward(ids[4:], rows[4:], 4, None, rows[:1], some - 4, draft.streams)[1:]
        )
        wanted.append(expected[-1][some].reshape(-1, draft.vocabulary))
    draft.close()
    assert bundle.manifest.draft is not None
    dtype = bundle.manifest.draft.model.dtype
    return compare("the draft", np.concatenate(found), np.concatenate(wanted), limit(dtype))
