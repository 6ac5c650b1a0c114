"""A chat as text, through the template of the parent's tokenizer.

A chat is a list of messages, each with a role and a content, in the column of a record that the job names. The template
writes them as the parent reads them, with the tokens that open and close a turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some templates write the day. It stands still, since text must not change from day to day.
_DAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024", "%a": "Fri", "%A": "Friday",
        "%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00"}  # fmt: skip
_STANDING_STILL = "{%- macro strftime_now(format) -%}{{ format" + "".join(
    f"|replace('{directive}', '{value}')" for directive, value in _DAY.items()
) + " }}{%- endmacro -%}"  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """The messages of one record, and the place where it stands, for messages to users."""

    messages: Sequence[Mapping[str, Any]]
    place: str


def is_chat(value: object) -> bool:
    """Whether it is messages: a list of objects that each have a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "role" in each for each in value)


def rendered(chat: Chat, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of a chat. Raises TextError, naming its place, where the tokenizer has no template for it."""
    if not tokenizer.chat_template:
        raise TextError(
            f"{chat.place} is a chat, and the parent's tokenizer has no chat template; add the template that it was "
            "trained with (chat_template.jinja, or chat_template in tokenizer_config.json), or give plain text"
        )
    try:
        # Parquet gives all messages the same keys, and null to those that lack one; transformers drops these.
        text = tokenizer.apply_chat_template(
            [dict(message) for message in chat.messages],
            chat_template=_STANDING_STILL + tokenizer.get_chat_template(),
            tokenize=False,
        )
    except Exception as error:  # templates raise whatever they like
        said = " ".join(str(error).split())[:200]
        raise TextError(f"{chat.place}: the parent's chat template refuses it: {said}; mend or remove it") from error
    assert isinstance(text, str)
    return text
