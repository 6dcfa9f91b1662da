"""A tokenizer of made-up words: byte-level BPE, so any text survives a round trip."""

from __future__ import annotations

from itertools import product

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mirror_edge.export.conversations import ASSISTANT, BEGIN, END, SPECIAL_TOKENS

__all__ = ["BYTES", "CHAT_TEMPLATE", "FIRST_WORD", "made_up_tokenizer"]

_CONSONANTS, _VOWELS = "bdfgjklmnprstvz", "aeiou"
_SYLLABLES = [a + b for a, b in product(_CONSONANTS, _VOWELS)]
_SPACE = "Ġ"  # how byte-level BPE writes a space

BYTES = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 256)
"""The ids of the single bytes, after the special tokens."""
FIRST_WORD = BYTES.stop + 2 * len(_SYLLABLES)
"""From here on every token is a word: a space and two or three syllables."""

CHAT_TEMPLATE = (
    "{{ '" + BEGIN + "' }}{% set at = namespace(n=0) %}"
    "{% for message in messages %}"
    "{% for letter in 'aeinorst ' %}"
    "{% set at.n = 31 * at.n + message['content'].count(letter) %}"
    "{% endfor %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + " ' }}"
    "{% for letters in ['" + "', '".join([_CONSONANTS, _VOWELS] * 2) + "'] %}"
    "{{ letters[at.n % (letters | length)] }}{% set at.n = at.n // (letters | length) %}"
    "{% endfor %}{% endif %}"
)
"""Writes the first word of each answer, derived from the letters of the messages.

A planted language depends on the last token only, so all answers would be the same without it.
"""


def made_up_tokenizer(vocabulary: int) -> Tokenizer:
    """A tokenizer of `vocabulary` tokens: special ones, bytes, syllables and words."""
    merges = [(syllable[0], syllable[1]) for syllable in _SYLLABLES]
    first = [(_SPACE, syllable) for syllable in _SYLLABLES]
    second = [(_SPACE + a, b) for b, a in product(_SYLLABLES, repeat=2)]
    third = ((_SPACE + a + b, c) for c, b, a in product(_SYLLABLES, repeat=3))
    merges += first + second[: vocabulary - FIRST_WORD]
    room = vocabulary - BYTES.stop - len(merges)
    merges += [merge for merge, _ in zip(third, range(room), strict=False)]
    spelled = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    spelled += [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(spelled)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
