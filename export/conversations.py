"""The demo pair's chat format: its special tokens and its chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror_edge.text import Message

__all__ = ["ASSISTANT", "BEGIN", "CHAT_TEMPLATE", "END", "SPECIAL_TOKENS", "USER", "render"]

BEGIN, USER, ASSISTANT, END = "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (BEGIN, USER, ASSISTANT, END)

CHAT_TEMPLATE = (
    "{{ '" + BEGIN + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant turns are known to this model') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def render(content: str | list[Message]) -> str:
    """The text of one document, rendered as `CHAT_TEMPLATE` would."""
    if isinstance(content, str):
        return content + END
    turns = (f"<|{turn['role']}|>{turn['content']}{END}" for turn in content)
    return BEGIN + "".join(turns)
