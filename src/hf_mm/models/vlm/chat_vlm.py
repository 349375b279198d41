"""Chats as text: any tokenizer's template, where images stand in it, and what of it the assistant says."""

import re
from bisect import bisect_right
from functools import lru_cache
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

__all__ = [
    "IGNORED_LABEL",
    "assistant_spans",
    "filler_id",
    "label_tokens",
    "lacks_special_tokens",
    "prepare_messages",
    "put_images_in",
]

IGNORED_LABEL = -100  # what cross-entropy skips
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
IMAGE_SOURCES = ("image", "url", "path", "base64")


def lacks_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer is to add its special tokens to a rendered chat.

    As `apply_chat_template` decides it: a template that writes the first token writes them all.
    """
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def filler_id(tokenizer: Any) -> int | None:
    """What rows of unequal length are filled up with, where a mask hides it; `None` if there is no such."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def prepare_messages(
    messages: list[dict], template: str, image_token: str, variables: dict[str, str]
) -> tuple[list[dict], list[object]]:
    """Messages in the form that `template` renders, without pixels, and the images that were in them.

    Args:
        messages: Turns with `role` and `content`: text, or a list of text and image parts.
        template: Jinja template. If it knows image parts it gets parts, else text with `image_token` in it.
        image_token: The placeholder of one image.
        variables: Special tokens that the template may write.

    Raises:
        ValueError: A turn or part has another form; roles are out of order; the text of a part holds
            `image_token`; or the template renders neither parts nor text.
    """
    images: list[object] = []
    turns = [{**message, "content": _parts(message, image_token, images)} for message in messages]
    _check_roles([message["role"] for message in messages])
    if not _renders(template, image_token, tuple(variables.items())):
        turns = [{**turn, "content": _as_text(turn["content"], image_token)} for turn in turns]
    return turns, images


def assistant_spans(
    messages: list[dict], template: str, variables: dict[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """A rendered conversation, and from which to which character the assistant speaks in each of its turns.

    With `{% generation %}` in the template these are its blocks. Without, they run from the end of what is
    rendered before a turn, with the prompt to answer, to the end of the turn; white space after the token
    that ends the turn is not said by anyone.

    Args:
        messages: As `prepare_messages` returns them.
        template: Jinja template.
        variables: What it may use.

    Raises:
        ValueError: The conversation has no turn of the assistant; the template marks none; or it renders a
            beginning of the conversation in another way than the whole, so that the turns cannot be told
            apart.
    """
    if not any(message["role"] == "assistant" for message in messages):
        roles = [message["role"] for message in messages]
        raise ValueError(f"The conversation has no assistant's turn to learn from, only {roles}.")
    if GENERATION_BLOCK.search(template):
        rendered: Any = render_jinja_template(
            [messages], chat_template=template, return_assistant_tokens_mask=True, **variables
        )
        texts, spans = rendered
        if not spans[0]:
            raise ValueError(
                "The chat template has `{% generation %}` but marks nothing in this conversation."
            )
        return texts[0], spans[0]
    text = _render(messages, template, variables)
    spans = [
        _turn(text, messages, turn, template, variables)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    return text, spans


def label_tokens(
    input_ids: list[int],
    offsets: list[tuple[int, int]],
    spans: list[tuple[int, int]],
    unlabelled: frozenset[int],
) -> list[int]:
    """The tokens that overlap one of `spans` as labels, `IGNORED_LABEL` in the place of all others.

    Args:
        input_ids: Tokens of one text.
        offsets: From which to which character each of them reaches; empty for padding and added tokens.
        spans: Characters to learn, ascending.
        unlabelled: Tokens that are never a label: those of images.
    """
    ends = [end for _, end in spans]
    labels = []
    for token, (first, last) in zip(input_ids, offsets, strict=True):
        span = bisect_right(ends, first)  # the first one that ends after this token begins
        said = span < len(spans) and spans[span][0] < last and first < last and token not in unlabelled
        labels.append(token if said else IGNORED_LABEL)
    return labels


def put_images_in(
    input_ids: list[int], labels: list[int], layouts: list[list[int]], image_token_id: int
) -> tuple[list[int], list[int]]:
    """Put the tokens of each image in the place of its placeholder; they are never a label.

    Args:
        input_ids: Tokens of a text.
        labels: As many.
        layouts: The tokens of each image.
        image_token_id: The placeholder.

    Returns:
        Tokens and labels.

    Raises:
        ValueError: There are more or fewer placeholders than images.
    """
    places = [i for i, token in enumerate(input_ids) if token == image_token_id]
    if len(places) != len(layouts):
        raise ValueError(
            f"{len(places)} image placeholders but {len(layouts)} images; write one for each image, where it "
            "belongs."
        )
    for place, layout in zip(reversed(places), reversed(layouts), strict=True):
        input_ids = input_ids[:place] + layout + input_ids[place + 1 :]
        labels = labels[:place] + [IGNORED_LABEL] * len(layout) + labels[place + 1 :]
    return input_ids, labels


def _parts(message: dict, image_token: str, images: list[object]) -> list[dict]:
    """The content as a list of parts without pixels; those are appended to `images`."""
    role, content = message.get("role"), message.get("content")
    content = "" if content is None and message.get("tool_calls") else content
    if not isinstance(role, str) or not isinstance(content, str | list | tuple):
        raise ValueError(f"A turn needs a `role` and a `content` of text or parts, got {message!r:.200}.")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if image_token in part["text"]:
                raise ValueError(
                    f"The text {part['text']!r:.80} in the turn of {role!r} holds {image_token!r}, which "
                    "stands for an image; write it in another way, or give the image as a part of its own."
                )
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image":
            images += [part[key] for key in IMAGE_SOURCES if part.get(key) is not None][:1]
            parts.append({"type": "image"})
        elif kind == "image_url":
            images.append(part["image_url"]["url"])
            parts.append({"type": "image"})
        else:
            raise ValueError(f"A part is a text or an image, got {part!r:.200} in the turn of {role!r}.")
    return parts


def _check_roles(roles: list[str]) -> None:
    """Raise unless the system, if any, speaks first, and then user and assistant in turn, the user first."""
    for turn, (before, role) in enumerate(zip(["", *roles], roles, strict=False)):
        if role == "system" and turn:
            raise ValueError(f"Turn {turn} is the system's, which speaks first or not at all; got {roles}.")
        due = {"user": "assistant", "assistant": "user"}.get(role)
        if due is not None and (role == before or (role == "assistant" and before in ("", "system"))):
            raise ValueError(
                f"Turn {turn} is the {role}'s where the {due}'s is due; join turns of the same role, and let "
                f"the user begin; got {roles}."
            )


def _as_text(parts: list[dict], image_token: str) -> str:
    """Parts as one text; images that open a turn stand on a line of their own, as in LLaVA."""
    text, only_images = "", False
    for part in parts:
        if part["type"] == "image":
            only_images = only_images or not text
            text += image_token
        else:
            breaks = only_images and part["text"] and not part["text"][0].isspace()
            text += ("\n" if breaks else "") + part["text"]
            only_images = only_images and not part["text"]
    return text


@lru_cache(maxsize=64)
def _renders(template: str, image_token: str, variables: tuple[tuple[str, str], ...]) -> bool:
    """Whether `template` takes parts; tried, since templates do not say.

    Raises:
        ValueError: It takes neither parts nor text.
    """
    parts = [{"type": "image"}, {"type": "text", "text": "a probe"}]
    for content in (parts, _as_text(parts, image_token)):
        answer = content[1:] if isinstance(content, list) else "an echo"
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        try:
            text = _render(chat, template, dict(variables))
        except Exception:  # what a template raises is its own affair
            continue
        if text.count(image_token) == 1 and "a probe" in text and "'type'" not in text:
            return isinstance(content, list)
    raise ValueError(
        f"The chat template renders neither image parts nor {image_token!r} in a text: {template[:200]!r}."
    )


def _render(messages: list[dict], template: str, variables: dict, **options: bool) -> str:
    return render_jinja_template([messages], chat_template=template, **variables, **options)[0][0]


def _turn(text: str, messages: list[dict], turn: int, template: str, variables: dict) -> tuple[int, int]:
    """From which to which character of `text`, which is all of `messages`, one turn reaches."""
    before = _render(messages[:turn], template, variables, add_generation_prompt=True) if turn else ""
    upto = _render(messages[: turn + 1], template, variables)
    for name, part in ((f"the prompt to turn {turn + 1}", before), (f"the first {turn + 1} turns", upto)):
        if not text.startswith(part):
            pairs = enumerate(zip(text, part, strict=False))
            at = next((i for i, pair in pairs if pair[0] != pair[1]), len(text))
            raise ValueError(
                f"The chat template renders {name} in another way than the same part of all "
                f"{len(messages)}: {part[at : at + 40]!r} in the place of {text[at : at + 40]!r}. What the "
                "assistant says cannot be told from this; mark it with `{% generation %}` in the template."
            )
    said = text[len(before) : len(upto)]
    content = messages[turn]["content"]
    content = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    end = said.rfind(content) + len(content) if content in said else 0
    end = max(end, len(said.rstrip()))
    return len(before), len(before) + end
