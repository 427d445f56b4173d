"""Values of a prompt source's row: chat messages and texts, checked, with errors that show what came."""

from __future__ import annotations

import unicodedata
from typing import Any, get_args

from nashtune.errors import PromptError
from nashtune.records import Message, Role


def messages_of(value: Any, column: str) -> tuple[Message, ...]:
    """A string as the user's message, or chat messages that end with the user's. Raises PromptError naming the column."""
    if not isinstance(value, list):
        return (Message("user", text_of(value, f"column {column!r}", "a string or a list of chat messages")),)
    messages = []
    for number, item in enumerate(value, 1):
        where = f"message {number} in column {column!r}"
        if not isinstance(item, dict) or not {"role", "content"} <= set(item):
            raise PromptError(f"{where}: {shown(item)}; accepted: an object with role and content")
        if item["role"] not in get_args(Role):
            raise PromptError(f"{where}: role {item['role']!r}; accepted: {', '.join(get_args(Role))}")
        messages.append(Message(item["role"], text_of(item["content"], where)))
    if not messages or messages[-1].role != "user":
        last = f"the last message is the {messages[-1].role}'s" if messages else "no messages"
        raise PromptError(f"column {column!r}: {last}; accepted: messages that end with the user's")
    return tuple(messages)


def text_of(value: Any, where: str, accepted: str = "a string") -> str:
    """A string that is not blank, in Unicode's form NFC. Raises PromptError that begins with ``where``."""
    if not isinstance(value, str):
        raise PromptError(f"{where}: {shown(value)}; accepted: {accepted}")
    if not value.strip():
        raise PromptError(f"{where}: empty; accepted: text")
    return unicodedata.normalize("NFC", whole(value, where))


def whole(text: str, where: str) -> str:
    """``text`` as it is. Raises PromptError that begins with ``where`` for a text that no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{where}: half a character (lone surrogate) at position {error.start}; accepted: text"
        ) from None
    return text


def shown(value: Any) -> str:
    """A value as error messages have it: its type and how it begins."""
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
