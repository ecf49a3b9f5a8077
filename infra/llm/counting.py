"""Counting tokens for providers that do not say, without asking anybody.

LiteLLM brings OpenAI's vocabularies along, so texts of OpenAI's models are counted with the model's own tokenizer,
read from that folder: tiktoken would fetch what it does not find, so only files that are there are used. Nobody
publishes the tokenizers of the others in a size that one would ship; theirs are one token per 4 characters, rounded
up, and so is the tail of a text longer than EXACT_CHARACTERS.

A vocabulary is read at its first use, in a thread: 0.3 s, of which tiktoken holds the interpreter for 0.1, and 40 to
80 MB. After that 4000 characters take 0.3 ms, and longer texts go to a thread, where tiktoken releases the
interpreter.
"""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any, Final

import tiktoken
from tiktoken.model import encoding_name_for_model

from infra.llm.prices import litellm_folder
from infra.llm.providers import DEMO
from infra.llm.shapes import Target

EXACT_CHARACTERS: Final = 400_000
INLINE_CHARACTERS: Final = 4_000
CHARACTERS_PER_TOKEN: Final = 4
TOKENS_PER_IMAGE: Final = 250  # as LiteLLM counts one it cannot look at

# OpenAI's recipe: each message is framed by three tokens, a name costs one more, the answer begins with three.
_PER_MESSAGE: Final = 3
_PER_NAME: Final = 1
_ANSWER_BEGINS: Final = 3

# The sha1 of the address that tiktoken would fetch: the name of the file in its cache.
_VOCABULARIES: Final = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}


_loaded: Final[dict[str, tiktoken.Encoding]] = {}
_loading: Final = threading.Lock()


async def count_text(target: Target, text: str) -> int:
    """How many tokens the model sees in a text; an estimate unless it is one of OpenAI's."""
    return await _count(target, [text])


async def count_messages(target: Target, messages: list[dict[str, Any]]) -> int:
    """How many tokens the model sees in a conversation; a picture of any size counts as TOKENS_PER_IMAGE."""
    texts: list[str] = []
    extra = _ANSWER_BEGINS + _PER_MESSAGE * len(messages)
    for message in messages:
        extra += _PER_NAME if message.get("name") else 0
        extra += _collect(message, texts)
    return await _count(target, texts) + extra


def _collect(message: dict[str, Any], texts: list[str]) -> int:
    """Add what is to be counted to the texts; what cannot be counted comes back as tokens.

    Limits are taken before the body has been checked, so anything may be anywhere.
    """
    images = 0
    texts.extend(value for value in message.values() if isinstance(value, str))
    for part in _dicts(message.get("content")):
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            images += 1
    for call in _dicts(message.get("tool_calls")):
        texts.extend(str(function.get("arguments", "")) for function in _dicts([call.get("function")]))
    return images * TOKENS_PER_IMAGE


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


async def _count(target: Target, texts: list[str]) -> int:
    vocabulary = vocabulary_of(target)
    if vocabulary is None:
        return sum(_by_length(len(text)) for text in texts)
    if vocabulary in _loaded and sum(map(len, texts)) <= INLINE_CHARACTERS:
        return _exactly(vocabulary, texts)
    return await asyncio.to_thread(_exactly, vocabulary, texts)


def _exactly(vocabulary: str, texts: list[str]) -> int:
    tokenizer = _tokenizer(vocabulary)
    left = EXACT_CHARACTERS
    count = 0
    for text in texts:
        head = text[:left]
        left -= len(head)
        count += len(tokenizer.encode_ordinary(head)) + _by_length(len(text) - len(head))
    return count


def _by_length(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def vocabulary_of(target: Target) -> str | None:
    """The vocabulary that a model is known to use and that is on this machine."""
    if target.provider == DEMO:
        name = "cl100k_base"  # what LiteLLM counts its mock answers with
    else:
        try:
            name = encoding_name_for_model(target.model.rpartition("/")[2])
        except KeyError:
            return None
    # gpt-oss: the same vocabulary, more special tokens.
    name = "o200k_base" if name == "o200k_harmony" else name
    file = _VOCABULARIES.get(name)
    return name if file is not None and (_folder() / file).is_file() else None


def _tokenizer(vocabulary: str) -> tiktoken.Encoding:
    with _loading:
        if vocabulary not in _loaded:
            os.environ["TIKTOKEN_CACHE_DIR"] = str(_folder())  # as LiteLLM does when it is imported
            _loaded[vocabulary] = tiktoken.get_encoding(vocabulary)
        return _loaded[vocabulary]


def _folder() -> Path:
    return litellm_folder() / "litellm_core_utils" / "tokenizers"
