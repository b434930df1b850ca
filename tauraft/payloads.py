"""The bytes of a message and of its answer, for those who have the message's class and no registry: clients.

A payload is ``[fsm, tag, {field: value}]`` (docs/decisions/0001); an answer is encoded by the type its command declares.
A client needs no FSM class and no plugin: the message class alone says both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgpack

from tauraft import errors
from tauraft.codec import ValueCodec, compile_codec, message_codec
from tauraft.fsm import Message, answer_hint

MAX_MESSAGE_BYTES: Final = 7 << 20


@lru_cache(maxsize=4096)
def _packer(kind: Any) -> tuple[str, str, Callable[[Any], Any]]:
    return kind.fsm, kind.tag, message_codec(kind).pack


@lru_cache(maxsize=4096)
def _answers(kind: Any) -> ValueCodec:
    return compile_codec(answer_hint(kind))


def encode_message(message: Message[Any]) -> bytes:
    """Raises ``TypeError`` where a field has not its type, ``TooLarge``."""
    kind: Any = type(message)
    fsm, tag, pack = _packer(kind)
    payload: bytes = msgpack.packb([fsm, tag, pack(message)])
    if len(payload) > MAX_MESSAGE_BYTES:
        raise errors.TooLarge(
            f"{tag} has {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} fit one command; nothing was sent",
            option="command",
        )
    return payload


def decode_answer(message: Message[Any], data: bytes) -> Any:
    """Raises ``CodecError`` where ``data`` is not of the type that ``message`` declares: another version's answer."""
    kind: Any = type(message)
    return _answers(kind).decode(data)
