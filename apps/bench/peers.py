"""Other programs that answer the same prompts, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mirror_edge.apps.bench.contenders import Said
from mirror_edge.apps.bench.tally import Tally
from mirror_edge.errors import DataError, MissingExtraError, OptionError
from mirror_edge.trunk import common

if TYPE_CHECKING:
    from mirror_edge.text import Message, Text

__all__ = ["PEERS", "Engine", "Genai", "Peer", "Timed", "peer"]


_TURNS = 2
"""How many times the first turn of a conversation a generator has room for."""


class Timed(NamedTuple):
    """Greedy tokens, the seconds until the first one and after it, and the passes after it."""

    tokens: list[int]
    first_token: float
    decode_seconds: float
    passes: int


class Engine(Protocol):
    """Another program's model."""

    def decode(self, ids: Sequence[int], most: int, eos: frozenset[int]) -> Timed:
        """Continue `ids` greedily; the last token may be one of `eos`.

        It reads what its cache does not have of `ids`, if it can keep a cache between calls.
        """
        ...

    def forget(self) -> None:
        """Have the next call read all of its tokens."""
        ...


class Genai:
    """ONNX Runtime GenAI, plain decoding."""

    source = "a folder with genai_config.json"

    def __init__(self, source: str, threads: int) -> None:
        """Load the folder `source`."""
        import onnxruntime_genai as genai

        if not (Path(source) / "genai_config.json").is_file():
            raise OptionError(f"{source}: is not {self.source}.")
        config = genai.Config(source)
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._genai, self._model = genai, genai.Model(config)
        said = json.loads((Path(source) / "genai_config.json").read_text(encoding="utf-8"))
        self._context: int = said["model"]["context_length"]
        self.forget()

    def forget(self) -> None:
        """See `Engine.forget`."""
        self._generator: Any = None
        self._cached: list[int] = []
        """The tokens that the generator has read."""
        self._room = 0
        """How many it has room for."""

    def decode(self, ids: Sequence[int], most: int, eos: frozenset[int] = frozenset()) -> Timed:
        """See `Engine.decode`."""
        began = time.perf_counter()
        kept = min(common(self._cached, ids), len(ids) - 1)
        if kept == 0 or len(ids) + most > self._room:
            kept, needed = 0, len(ids) + most
            self._room = max(needed, min(_TURNS * needed, self._context))
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(do_sample=False, max_length=self._room)
            self._generator = self._genai.Generator(self._model, params)
        else:
            self._generator.rewind_to(kept)
        generator = self._generator
        generator.append_tokens(list(ids[kept:]))
        tokens: list[int] = []
        first = began
        while len(tokens) < most and not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            if len(tokens) == 1:
                first = time.perf_counter()
            if tokens[-1] in eos:
                break
        ended = time.perf_counter()
        self._cached = [*ids, *tokens[:-1]]
        return Timed(tokens, first - began, ended - first, len(tokens) - 1)


class LlamaCpp:
    """llama.cpp, plain decoding."""

    source = "a GGUF file"

    def __init__(self, source: str, threads: int) -> None:
        """Load the file `source`."""
        import llama_cpp

        if not Path(source).is_file():
            raise OptionError(f"{source}: is not {self.source}.")
        self._model: Any = llama_cpp.Llama(
            source, n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def forget(self) -> None:
        """See `Engine.forget`."""
        self._model.reset()

    def decode(self, ids: Sequence[int], most: int, eos: frozenset[int]) -> Timed:
        """See `Engine.decode`."""
        began = time.perf_counter()
        tokens: list[int] = []
        first = began
        for token in self._model.generate(list(ids), temp=0.0, repeat_penalty=1.0, reset=True):
            tokens.append(int(token))
            if len(tokens) == 1:
                first = time.perf_counter()
            if len(tokens) == most or tokens[-1] in eos:
                break
        return Timed(tokens, first - began, time.perf_counter() - first, len(tokens) - 1)


class Transformers:
    """Hugging Face transformers, with assisted generation where a draft is named."""

    source = "a checkpoint's folder, or TARGET,DRAFT for assisted generation"

    def __init__(self, source: str, threads: int) -> None:
        """Load TARGET, or TARGET,DRAFT."""
        import torch
        import transformers

        target, _, draft = source.partition(",")
        for folder in filter(None, (target, draft)):
            if not (Path(folder) / "config.json").is_file():
                raise OptionError(f"{folder}: is not a checkpoint's folder.")
        torch.set_num_threads(threads)
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._torch, self._model = torch, load(target, dtype=torch.float32).eval()
        self._draft = load(draft, dtype=torch.float32).eval() if draft else None

    def forget(self) -> None:
        """See `Engine.forget`. `generate` begins with an empty cache in any case."""

    def decode(self, ids: Sequence[int], most: int, eos: frozenset[int]) -> Timed:
        """See `Engine.decode`."""
        torch = self._torch
        prompt = torch.tensor([list(ids)])
        ends: list[float] = []
        hook = self._model.register_forward_hook(lambda *_: ends.append(time.perf_counter()))
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                out = self._model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=most,
                    do_sample=False,
                    eos_token_id=sorted(eos) or None,
                    pad_token_id=0,
                    assistant_model=self._draft,
                )
        finally:
            hook.remove()
        ended = time.perf_counter()
        # The first pass reads the prompt. With a draft it may verify tokens as well.
        tokens = out[0, len(ids) :].tolist()
        return Timed(tokens, ends[0] - began, ended - ends[0], len(ends) - 1)


class _Kind(NamedTuple):
    engine: Any
    modules: tuple[str, ...]
    package: str


PEERS = {
    "onnxruntime-genai": _Kind(Genai, ("onnxruntime_genai",), "onnxruntime-genai"),
    "llama.cpp": _Kind(LlamaCpp, ("llama_cpp",), "llama-cpp-python"),
    "transformers": _Kind(Transformers, ("torch", "transformers"), "'mirror-edge[export]'"),
}


class Peer:
    """A peer as a contender: our chat template and tokenizer, its model."""

    def __init__(self, name: str, engine: Engine, text: Text) -> None:
        """`text` is the bundle's."""
        self.name = name
        self._engine, self._text = engine, text

    def answer(self, messages: Sequence[Message], most: int) -> Said:
        """See `Contender.answer`."""
        began = time.perf_counter()
        ids = self._text.encode_chat(messages)
        found = self._engine.decode(ids, most, self._text.eos)
        said = self._text.decode(found.tokens)
        seconds = time.perf_counter() - began
        counts = Tally(passes=found.passes, committed=len(found.tokens) - 1)
        return Said(
            said, tuple(found.tokens), seconds, found.first_token, found.decode_seconds, counts
        )

    def forget(self) -> None:
        """See `Contender.forget`."""
        self._engine.forget()


def peer(asked: str, text: Text, threads: int) -> Peer:
    """A peer from NAME=SOURCE.

    Raises:
        OptionError: for an unknown peer or a source that it cannot read.
        MissingExtraError: for a peer that is not installed, with the line that installs it.
        DataError: for a model that the peer cannot load.
    """
    name, _, source = asked.partition("=")
    if name not in PEERS:
        raise OptionError(f"--peer is {name!r}; it must be one of {', '.join(PEERS)}.")
    kind = PEERS[name]
    for module in kind.modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f"--peer {name}: {module} is not installed: pip install {kind.package}"
            )
    if not source:
        needed = kind.engine.source
        raise OptionError(f"--peer {name}: needs a model. Write --peer {name}=…, {needed}.")
    try:
        engine: Engine = kind.engine(source, threads)
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{source}: {name} refuses it ({error}).") from error
    return Peer(name, engine, text)
