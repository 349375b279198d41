"""Chat templates: of small models trained from nothing, of captions, and the one most chat models share."""

from pathlib import Path

__all__ = ["CHATML_TEMPLATE", "COMPACT_CHAT_TEMPLATE", "PLAIN_CHAT_TEMPLATE", "read_chat_template"]

# One token per turn instead of several words: rows of short questions get a third shorter. The space makes a
# word the same token at the start of a turn as inside it: what is learnt of one serves the other. Images that
# open a turn stand before its token, so that questions about one image all begin alike, with the image.
COMPACT_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}"
    "{%- for part in parts -%}{{- '<image>' if part['type'] == 'image' else ' ' + part['text'] -}}"
    "{%- endfor -%}"
    "{{- eos_token -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{%- set turn = namespace(open=false) -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- else -%}"
    "{{- ('' if turn.open else '<|' + message['role'] + '|>') + ' ' + part['text'] -}}"
    "{%- set turn.open = true -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if not turn.open -%}{{- '<|' + message['role'] + '|>' -}}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# For captions: they follow their image without roles, as in LLaVA's first stage.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{%- for part in parts -%}{{- ' ' + part['text'] -}}{%- endfor -%}{{- eos_token -}}"
    "{%- endgeneration -%}"
    "{%- else -%}"
    "{%- for part in parts -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
# As Qwen and SmolLM write it, without the system prompt that their own templates put before every chat.
CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{%- for part in parts -%}{{- part['text'] -}}{%- endfor -%}{{- '<|im_end|>' -}}"
    "{%- endgeneration -%}"
    "{%- else -%}"
    "{%- for part in parts -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{{- '<|im_end|>' -}}"
    "{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def read_chat_template(name: str) -> str:
    """The template "chatml", or the text of a Jinja file.

    Raises:
        FileNotFoundError: Neither the one nor the other.
    """
    if name == "chatml":
        return CHATML_TEMPLATE
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"`chat_template`={name!r} is neither 'chatml' nor a file with a Jinja template."
        )
    return Path(name).read_text(encoding="utf-8")
