"""Conversations as text: a chat template, and which parts of it a model learns to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapterlab.errors import did_you_mean

Messages = Sequence[Mapping[str, str]]
Part = tuple[str, bool]  # text, and whether the model learns to say it
Render = Callable[..., str]

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
        "{{ eos_token if message.role == 'assistant' else '' }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}
ROLES = ("system", "user", "assistant", "tool")

_OTHER_KEYS = {"from": "role", "value": "content"}  # ShareGPT's
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}


def clean_messages(value: Any) -> list[dict[str, str]]:
    """Return messages as mappings of role and content; JSON text (a CSV's field) and ShareGPT's names are read.

    Raises:
        ValueError: they aren't messages; the message goes on after "column 'messages' ".
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"holds text that is no JSON list of messages: {value[:40]!r}") from None
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError("holds no list of messages, such as [{role: user, content: Hello}]")
    messages = []
    for number, given in enumerate(value, 1):
        message = {_OTHER_KEYS.get(key, key): item for key, item in given.items() if item is not None}
        role, content = message.get("role"), message.get("content")
        role = _OTHER_ROLES.get(str(role), role)
        if role not in ROLES:
            near = did_you_mean(str(role), [*ROLES, *_OTHER_ROLES])
            raise ValueError(f"holds a message (number {number}) of role {role!r}.{near} Known: {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"holds a message (number {number}) whose content is {_shown(content)}, not a text")
        messages.append({"role": str(role), "content": content})
    return messages


def renderer(tokenizer: Any, template: str | None) -> Render:
    """Return what writes messages as text: with the tokenizer's own chat template, or one of ours by name.

    It raises ValueError for messages that the template refuses.
    """
    chosen = {}
    if template in TEMPLATES:
        chosen["chat_template"] = TEMPLATES[template]
        if template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():  # a text would not end in one token
            chosen["chat_template"] = TEMPLATES[template].replace("<|im_end|>", "{{ eos_token }}")

    def render(messages: Messages, ask: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **chosen)
            )
        except TemplateError as error:  # "roles must alternate", and what else a template asks for
            raise ValueError(f"the tokenizer's chat template refuses it: {error}") from error

    return render


def parts(messages: Messages, render: Render) -> list[Part]:
    """Return a conversation's text in parts; an assistant's turns, once somebody has spoken, are what is learned.

    Raises:
        ValueError: the template rewrites earlier turns when later ones come, so that what is learned has no place.
    """
    found: list[Part] = []
    done = ""
    asked = False
    for number, message in enumerate(messages):
        asked = asked or message["role"] == "user"
        if message["role"] != "assistant" or not asked:
            continue
        before, after = render(messages[:number], True), render(messages[: number + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError(
                "the tokenizer's chat template writes a conversation's beginning differently when it goes on, so "
                "that an answer's place isn't known: set task.template=chatml"
            )
        found += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if messages[-1]["role"] != "assistant":
        whole = render(messages, True)
        found.append((whole[len(done) :] if whole.startswith(done) else whole, False))
    return found


def turn_end(tokenizer: Any, render: Render) -> int | None:
    """Return the special token that a template ends an assistant's turn with, if it does."""
    try:
        text = render([{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}], False)
    except ValueError:
        return None
    after = tokenizer(text.rpartition("Answer")[2], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return int(after[0]) if after and after[0] in special else None


def tokens(tokenizer: Any, rows: Sequence[Sequence[Part]]) -> list[list[list[int]]]:
    """Return the token ids of each row's parts, without special tokens.

    The first part is tokenised by itself, as it will be when the model is asked. A later one has the tokens that it has
    behind those before it; where a token would stand across the border, the ones that it has alone.
    """
    texts, done = [""] * len(rows), [list[int]() for _ in rows]
    found: list[list[list[int]]] = [[] for _ in rows]
    for number in range(max(map(len, rows), default=0)):
        places = [place for place, parts in enumerate(rows) if len(parts) > number]
        for place in places:
            texts[place] += rows[place][number][0]
        wholes = tokenizer([texts[place] for place in places], add_special_tokens=False, verbose=False)["input_ids"]
        for place, whole in zip(places, wholes, strict=True):
            count = len(done[place])
            if whole[:count] == done[place]:
                new = whole[count:]
            else:
                new = tokenizer(rows[place][number][0], add_special_tokens=False, verbose=False)["input_ids"]
            done[place] = done[place] + new
            found[place].append(new)
    return found


def _shown(content: Any) -> str:
    return "empty" if content is None or content == "" or isinstance(content, str) else f"a {type(content).__name__}"
