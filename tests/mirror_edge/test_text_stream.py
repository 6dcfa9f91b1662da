from collections.abc import Iterator, Sequence
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mirror_edge.detokenize import opener


def byte_level() -> Tokenizer:
    """Bytes, a few merges across characters, a special token, and added tokens that are not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # "é" is C3 A9, spelled Ã ©; "€" is E2 82 AC, spelled â Ĥ ¬.
    merges = [("h", "e"), ("Ġ", "he"), ("©", "Ã"), ("â", "Ĥ"), ("¬", "â")]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("two words"), AddedToken("é€")])
    return tokenizer


def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """As Llama 2's: "▁" for a space, ``<0xNN>`` for what has no token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "h", "e", "é", "�", "he", "▁he", "<0xZZ>"]
    merges = [("▁", "▁"), ("h", "e"), ("▁", "he")]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*chain, decoders.Strip(" ", 1, 0)] if strip else chain  # Gemma's strips nothing
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def word_level(decoder: decoders.Decoder | None) -> Tokenizer:
    pieces = ["[CLS]", "un", "##able", "##s", "word", ".", "▁to", "▁", "go", "end</w>", "é", "�"]
    pieces += [f"<0x{byte:02X}>" for byte in "€é".encode()]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="un"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["[CLS]"])
    return tokenizer


BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()
OTHERS = {
    "none": word_level(None),
    "wordpiece": word_level(decoders.WordPiece()),
    "metaspace": word_level(decoders.Metaspace()),
    "suffix": word_level(decoders.BPEDecoder()),
    "unfused": word_level(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
}

texts = st.text() | st.text("he é€😀�", max_size=30)
sizes = st.lists(st.integers(0, 3), max_size=30)


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any tokens, also one id that has none, as a padded vocabulary allows."""
    return st.lists(st.integers(0, tokenizer.get_vocab_size()), max_size=40)


def spelled(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


def chunks(ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    at = 0
    for size in sizes:
        yield ids[at : at + size]
        at += size
    yield ids[at:]


def streamed(tokenizer: Tokenizer, ids: Sequence[int], sizes: Sequence[int] = ()) -> str:
    stream = opener(tokenizer)()
    return "".join(map(stream.push, chunks(ids, sizes))) + stream.finish()


def each(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token gave, and what finishing gave."""
    stream = opener(tokenizer)()
    return [*(stream.push([token]) for token in ids), stream.finish()]


# --- byte-level -----------------------------------------------------------------------------------


@given(ids_of(BYTE_LEVEL), sizes)
def test_byte_level_equals_the_whole_decode_of_any_tokens(ids: list[int], sizes: list[int]) -> None:
    assert streamed(BYTE_LEVEL, ids, sizes) == BYTE_LEVEL.decode(ids)


@given(texts, sizes)
@example("éé€€😀", [])
def test_byte_level_gives_out_exactly_the_complete_characters(text: str, sizes: list[int]) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    stream, emitted, known = opener(BYTE_LEVEL)(), "", 0
    for chunk in chunks(ids, sizes):
        emitted += stream.push(chunk)
        for token in chunk:
            piece = BYTE_LEVEL.id_to_token(token) or ""
            known += len(piece.encode() if piece in ("two words", "é€") else piece)
        assert emitted == text.encode()[:known].decode(errors="ignore")
    assert (emitted, stream.finish()) == (text, "")


def test_a_character_over_four_tokens_comes_with_the_last() -> None:
    ids = spelled(BYTE_LEVEL, "ð", "Ł", "ĺ", "Ģ")
    assert each(BYTE_LEVEL, ids) == ["", "", "", "😀", ""]


def test_a_token_may_end_one_character_and_start_another() -> None:
    ids = spelled(BYTE_LEVEL, "Ã", "©Ã", "©")
    assert each(BYTE_LEVEL, ids) == ["", "é", "é", ""]


def test_a_replacement_character_in_the_text_is_not_held_back() -> None:
    ids = BYTE_LEVEL.encode("�h").ids
    assert each(BYTE_LEVEL, ids) == ["", "", "�", "h", ""]


def test_bytes_that_no_character_begins_with_are_replaced_at_once() -> None:
    ids = spelled(BYTE_LEVEL, "Ã", "h", "©")
    assert each(BYTE_LEVEL, ids) == ["", "�h", "�", ""]


def test_a_character_cut_off_by_the_end_is_replaced() -> None:
    assert each(BYTE_LEVEL, spelled(BYTE_LEVEL, "h", "âĤ")) == ["h", "", "�"]


def test_special_tokens_yield_nothing_even_inside_a_character() -> None:
    ids = spelled(BYTE_LEVEL, "Ã", "<|end|>", "©", "<|end|>")
    assert each(BYTE_LEVEL, ids) == ["", "", "é", "", ""]


def test_added_tokens_that_are_not_special_are_text() -> None:
    assert streamed(BYTE_LEVEL, spelled(BYTE_LEVEL, "<think>", "two words")) == "<think>two words"


# --- byte-fallback --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [BYTE_FALLBACK, byte_fallback(strip=False)])
@given(parts=st.lists(texts | st.just("</s>")), sizes=sizes)
def test_byte_fallback_equals_the_whole_decode(
    tokenizer: Tokenizer, parts: list[str], sizes: list[int]
) -> None:
    ids = [token for part in parts for token in tokenizer.encode(part).ids]
    assert streamed(tokenizer, ids, sizes) == tokenizer.decode(ids)


@given(ids_of(BYTE_FALLBACK), sizes)
def test_byte_fallback_replaces_stray_bytes_one_by_one(ids: list[int], sizes: list[int]) -> None:
    """As `tokenizers` does, but a character that was complete stays, whatever follows it."""
    pieces = [BYTE_FALLBACK.id_to_token(token) for token in ids]
    kept = [piece for piece in pieces if piece not in (None, "<unk>", "<s>", "</s>")]
    expected, agree = "", True
    for is_byte, run in groupby(kept, lambda p: p.startswith("<0x") and p != "<0xZZ>"):
        if is_byte:
            raw = bytes(int(piece[3:5], 16) for piece in run)
            decoded = raw.decode(errors="surrogateescape")
            stray = sum("\udc80" <= character <= "\udcff" for character in decoded)
            agree = agree and stray in (0, len(decoded))
            expected += "".join("�" if "\udc80" <= c <= "\udcff" else c for c in decoded)
        else:
            expected += "".join(run).replace("▁", " ")
    expected = expected.removeprefix(" ")
    assert streamed(BYTE_FALLBACK, ids, sizes) == expected
    if agree:
        assert BYTE_FALLBACK.decode(ids) == expected


def test_byte_tokens_give_each_character_when_it_is_complete() -> None:
    ids = spelled(BYTE_FALLBACK, "▁he", "<0xE2>", "<0x82>", "<0xAC>", "<0xC3>", "<0xA9>", "▁he")
    assert each(BYTE_FALLBACK, ids) == ["he", "", "", "€", "", "é", " he", ""]


def test_only_the_first_space_of_the_answer_is_stripped() -> None:
    assert each(BYTE_FALLBACK, spelled(BYTE_FALLBACK, "<s>", "▁▁", "▁")) == ["", " ", " ", ""]
    assert each(BYTE_FALLBACK, spelled(BYTE_FALLBACK, "he", "▁")) == ["he", " ", ""]
    assert each(BYTE_FALLBACK, spelled(BYTE_FALLBACK, "<0x20>", "<0x20>")) == ["", " ", ""]


def test_a_replacement_character_token_is_text() -> None:
    assert each(BYTE_FALLBACK, spelled(BYTE_FALLBACK, "�", "h")) == ["�", "h", ""]


def test_what_only_looks_like_a_byte_token_is_text() -> None:
    assert each(BYTE_FALLBACK, spelled(BYTE_FALLBACK, "<0xZZ>")) == ["<0xZZ>", ""]


def test_a_broken_byte_token_is_replaced_when_the_next_token_shows_it() -> None:
    ids = spelled(BYTE_FALLBACK, "<0xE2>", "<0x82>", "h", "<0xE2>")
    assert each(BYTE_FALLBACK, ids) == ["", "", "��h", "", "�"]


# --- any other decoder ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "wordpiece", "metaspace", "suffix"])
@given(data=st.data(), sizes=sizes)
def test_other_decoders_equal_the_whole_decode(
    name: str, data: st.DataObject, sizes: list[int]
) -> None:
    tokenizer = OTHERS[name]
    ids = data.draw(ids_of(tokenizer)) * 3  # longer than the window
    assert streamed(tokenizer, ids, sizes) == tokenizer.decode(ids)
    assert "".join(each(tokenizer, ids)) == tokenizer.decode(ids)


def test_other_decoders_hold_back_only_a_trailing_replacement_character() -> None:
    tokenizer = OTHERS["unfused"]
    ids = spelled(tokenizer, "go", "<0xE2>", "<0x82>", "<0xAC>", "▁to", "[CLS]", "�")
    assert each(tokenizer, ids) == ["go", "", "", "€", " to", "", "", "�"]


@pytest.mark.parametrize(
    "steps",
    [
        [decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback(), decoders.Fuse()],
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)],
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(".", 0, 1)],
    ],
)
def test_unusual_byte_fallback_decoders_equal_the_whole_decode(
    steps: list[decoders.Decoder],
) -> None:
    tokenizer = word_level(decoders.Sequence(steps))
    ids = 9 * spelled(tokenizer, "▁to", "▁", "go", "<0xE2>", "<0x82>", "<0xAC>", "é", ".")
    assert "".join(each(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_long_answer_keeps_its_characters_when_the_window_slides() -> None:
    tokenizer = OTHERS["unfused"]
    ids = 20 * spelled(tokenizer, "▁to", "<0xE2>", "<0x82>", "<0xAC>", "<0xC3>", "<0xA9>", "[CLS]")
    assert "".join(each(tokenizer, ids)) == tokenizer.decode(ids) == ("to€é " * 20).rstrip()
