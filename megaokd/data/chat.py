"""Conversations as text: a chat template renders what stands before the last answer, and the answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.data.chunks import MalformedRecordError
from megaokd.data.examples import Conversation
from megaokd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS_OWN = "tokenizer"
"""For a template: the one that the tokenizer carries."""


def set_template(tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
    """Give the tokenizer the Jinja template in the file `template`, or see to it that it has one of its own.

    Raises:
        UserError: the file cannot be read, or the tokenizer has no template.
    """
    if template != TOKENIZERS_OWN:
        try:
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat-template {template}: the file cannot be read ({error})") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: this tokenizer has no chat template, and messages need one; "
            "pass --chat-template FILE"
        )


def render(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, where: str) -> tuple[str, str]:
    """(prompt, response): all up to where a generation would begin, and the rest of the rendered conversation.

    What the template writes behind an answer that was cut is left out: it would say that the answer ends there.

    Raises:
        MalformedRecordError: the template refuses these messages, does not render the answer behind the prompt, or
            changes an answer that was cut, whose end is then not found.
    """
    messages = list(conversation.messages)
    try:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # jinja's own errors, and whatever a template raises
        reason = " ".join(str(error).split())[:200]
        raise MalformedRecordError(f"{where}: the chat template refuses these messages ({reason})") from None
    assert isinstance(prompt, str)
    assert isinstance(whole, str)
    if not whole.startswith(prompt):
        raise MalformedRecordError(
            f"{where}: the chat template does not put the last answer behind the prompt of a generation "
            f"(the prompt ends in {prompt[-40:]!r})"
        )
    response, answer = whole[len(prompt) :], messages[-1]["content"]
    if not conversation.cut:
        return prompt, response
    if answer not in response:
        raise MalformedRecordError(f"{where}: the chat template changes the answer, so that its cut end is not found")
    return prompt, response[: response.rindex(answer) + len(answer)]
