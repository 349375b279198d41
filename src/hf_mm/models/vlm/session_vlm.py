"""Many questions, or a conversation, about the same images, which are read once.

Shapes: Q questions, A answers, W words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .chat_vlm import IGNORED_LABEL, label_tokens, lacks_special_tokens, put_images_in
from .processing_vlm import MMVLMProcessor, user_message
from .read_tokens_vlm import common_length
from .reading_vlm import Reader, SeenImages

__all__ = ["MMVLMSession"]

# Two questions that tokenizers begin differently: what their prompts have in common, all prompts have.
PROBES = ("Why?", "7 of them")


class MMVLMSession:
    """Ask a vision-language model several things about the same images, and encode them once.

    The prompt up to the first word of a question is read when the session begins; its keys and values serve
    every question. Answers are those to the question asked alone. Do not change the model meanwhile.

        session = MMVLMSession(model, processor, "cats.jpg")
        session.ask(["How many cats are there?", "What color are they?"])
        session.score("Is there a dog?", ["yes", "no"])
        session.chat("Describe the picture.")
        session.chat("And its mood?")

    Args:
        model: An `MMVLMForConditionalGeneration`, with adapters or without.
        processor: Its processor.
        images: One image or a list of them, see `load_rgb`; none for a conversation that begins without.
        system: What the system says before anything else.

    Raises:
        ValueError: An image cannot be read; the language model keeps a past that cannot be shared; the chat
            template puts the question before the images; or the prompt is longer than the model's positions.
    """

    def __init__(
        self, model: Any, processor: MMVLMProcessor, images: Any = (), system: str | None = None
    ) -> None:
        self.model, self.processor = model, processor
        self._reader = Reader(model, processor)
        self._system = []
        if system is not None:
            self._system = [{"role": "system", "content": self._checked(system, "`system`")}]
        empty = self._reader.nothing()  # raises for a model that cannot share its past
        with self._reader.at_rest():
            self._seen = self._reader.see(SeenImages(), images)
            prompts = [self._asked(probe, "") for probe in PROBES]
            shared = common_length(*prompts)
            if shared < _images_end(prompts[0], processor):
                raise ValueError(
                    "The chat template writes the question before the end of the images, so prompts have no "
                    "beginning with images in common; ask each question alone with `model.generate`."
                )
            self._check_room(shared, 1)
            self._prefix = self._reader.read(empty, prompts[0][:shared], self._seen)
        self.reset()

    @property
    def messages(self) -> list[dict]:
        """The conversation of `chat` so far, turns of `role` and `content`."""
        return list(self._turns)

    @property
    def images(self) -> list[np.ndarray]:
        """The images of the conversation so far, (height, width, 3) RGB each."""
        return list(self._chat_seen.pixels)

    def reset(self) -> None:
        """Forget what was said in `chat`, and the images that it brought; those of the beginning stay."""
        self._turns: list[dict] = list(self._system)
        self._chat_seen, self._state = self._seen, self._prefix

    def ask(
        self, questions: Any, max_new_tokens: int = 64, batch_size: int = 16, **options: Any
    ) -> str | list[str]:
        """Answer questions about the images, each as if it were the only one.

        Args:
            questions: A question, or a list of them.
            max_new_tokens: Longest answer.
            batch_size: Questions at a time.
            options: Of `generate`, such as `num_beams`, or `streamer` for a single question; greedy by
                default. Of several sequences per question the first is returned.

        Returns:
            The answer, or one per question, without special tokens and surrounding white space.

        Raises:
            ValueError: A question is empty or holds a token of images; it and its answer are longer than the
                model's positions; or a streamer is to print several answers.
        """
        rows = self._rows(questions)
        if len(rows) > 1 and options.get("streamer") is not None:
            raise ValueError(f"`streamer` prints one answer at a time, got {len(rows)} questions; ask one.")
        self._check_room(max(map(len, rows), default=0), max_new_tokens)
        options = {"max_new_tokens": max_new_tokens, **options}
        answers, reader = [""] * len(rows), self._reader
        with reader.at_rest():
            for batch in reader.batches(self._prefix, rows, batch_size, max_new_tokens):
                chosen = [rows[row] for row in batch]
                start = reader.beginning(self._prefix, chosen, self._seen)
                for row, tokens in zip(batch, reader.generate(start, chosen, options), strict=True):
                    answers[row] = self._text(tokens)
        return answers[0] if isinstance(questions, str) else answers

    def logits(self, questions: Any, batch_size: int = 16) -> Tensor:
        """The logits of all words as the first of the answer to each question.

        Args:
            questions: A question, or a list of at least one.
            batch_size: Questions at a time.

        Returns:
            (Q, W), or (W,) for a single question.

        Raises:
            ValueError: As `ask`; or there is no question.
        """
        rows = self._rows(questions)
        if not rows:
            raise ValueError("`questions` is empty; give at least one.")
        self._check_room(max(map(len, rows)), 1)
        logits: dict[int, Tensor] = {}
        with self._reader.at_rest():
            for batch in self._reader.batches(self._prefix, rows, batch_size, 0):
                chosen = [rows[row] for row in batch]
                start = self._reader.beginning(self._prefix, chosen, self._seen)
                logits.update(zip(batch, self._reader.logits(start, chosen, 1)[:, -1], strict=True))
        return logits[0] if isinstance(questions, str) else torch.stack([logits[i] for i in range(len(rows))])

    def score(self, question: str, answers: Sequence[str], batch_size: int = 16) -> Tensor:
        """How likely each of some answers to a question is, as for multiple choice.

        Args:
            question: The question.
            answers: What may be answered, at least one text.
            batch_size: Answers at a time.

        Returns:
            (A,) log-likelihoods in nats, the sum over the tokens that would be labels in training: the answer
            and what ends the assistant's turn.

        Raises:
            ValueError: As `ask`; or there is no answer, or an empty one.
        """
        if isinstance(answers, str) or not len(answers):
            raise ValueError(f"`answers` must be a list of at least one text, got {answers!r}.")
        asked = user_message(self._checked(question, "`question`"), len(self._seen.layouts))
        told = [self._answered(asked, answer, f"`answers`[{i}]") for i, answer in enumerate(answers)]
        rows, firsts = [row for row, _ in told], [first for _, first in told]
        self._check_room(max(map(len, rows)), 0)
        heads = [row[:first] for row, first in told]
        shared = min(common_length(heads[0], head) for head in heads) - 1
        reader, sums = self._reader, torch.zeros(len(rows))
        with reader.at_rest():
            start = reader.beginning(self._prefix, heads, self._seen)
            reader.read(start, rows[0][: max(shared, len(start.tokens))], self._seen)
            for batch in reader.batches(start, rows, batch_size, 0):
                keep = 1 + max(len(rows[row]) - firsts[row] for row in batch)
                logits = reader.logits(start, [rows[row] for row in batch], keep)
                for row, words in zip(batch, logits, strict=True):
                    labels = torch.tensor(rows[row][firsts[row] :], device=words.device)
                    words = words[-len(labels) - 1 : -1].float()
                    sums[row] = -nn.functional.cross_entropy(words, labels, reduction="sum")
        return sums

    def chat(self, text: str, images: Any = (), max_new_tokens: int = 64, **options: Any) -> str:
        """Say the next thing in a conversation; what was read and said before is not read again.

        Args:
            text: What the user says.
            images: Further images, shown before `text`.
            max_new_tokens: Longest answer.
            options: Of `generate`, such as `streamer`; greedy by default.

        Returns:
            The answer, without special tokens and surrounding white space.

        Raises:
            ValueError: As `ask`, or an image cannot be read; the conversation is then as before.
        """
        text, reader = self._checked(text, "`text`"), self._reader
        options = {"max_new_tokens": max_new_tokens, **options}
        with reader.at_rest():
            seen = reader.see(self._chat_seen, images)
            begun = len(self._turns) > len(self._system)
            shown = len(seen.layouts) - (len(self._chat_seen.layouts) if begun else 0)
            turns = [*self._turns, user_message(text, shown)]
            ids = self._prompt(turns, seen)
            self._check_room(len(ids), max_new_tokens)
            state = reader.beginning(self._state, [ids], seen)
            images_end = _images_end(ids, self.processor)
            if images_end == len(ids):
                raise ValueError(
                    "The chat template ends the prompt with an image, so no word can be the next."
                )
            if images_end > len(state.tokens):
                reader.read(state, ids[:images_end], seen)
            tokens = reader.generate(state, [ids], options, keep=True)[0]
        answer = self._text(tokens)
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        self._chat_seen, self._state = seen, state
        return answer

    def _rows(self, questions: Any) -> list[list[int]]:
        """The prompt of each question."""
        if isinstance(questions, str):
            return [self._asked(questions, "`questions`")]
        return [self._asked(question, f"`questions`[{i}]") for i, question in enumerate(questions)]

    def _asked(self, question: str, name: str) -> list[int]:
        turn = user_message(self._checked(question, name), len(self._seen.layouts))
        return self._prompt([*self._system, turn], self._seen)

    def _prompt(self, turns: list[dict], seen: SeenImages) -> list[int]:
        """The tokens of a conversation that the assistant is to continue."""
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        tokenizer = self.processor.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=lacks_special_tokens(tokenizer, text))
        return put_images_in(ids, ids, list(seen.layouts), self.processor.image_token_id)[0]

    def _answered(self, asked: dict, answer: str, name: str) -> tuple[list[int], int]:
        """The tokens of a question and its answer, up to the last label, and where the first label is."""
        turns = [*self._system, asked, {"role": "assistant", "content": self._checked(answer, name)}]
        ((text, spans),) = self.processor.render_chats([turns], names=[name])
        tokenizer = self.processor.tokenizer
        added = lacks_special_tokens(tokenizer, text)
        output = tokenizer(text, add_special_tokens=added, return_offsets_mapping=True)
        ids, token = output["input_ids"], self.processor.image_token_id
        labels = label_tokens(ids, output["offset_mapping"], spans, self.processor.unlabelled_ids)
        ids, labels = put_images_in(ids, labels, list(self._seen.layouts), token)
        said = [i for i, label in enumerate(labels) if label != IGNORED_LABEL]
        return ids[: said[-1] + 1], said[0]

    def _text(self, tokens: list[int]) -> str:
        tokenizer, images = self.processor.tokenizer, self.processor.unlabelled_ids
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        # A token of images may also be spelled out; in the next prompt it would be one.
        while not images.isdisjoint(ids := tokenizer.encode(text, add_special_tokens=False)):
            text = tokenizer.decode([token for token in ids if token not in images])
        return text.strip()

    def _checked(self, text: str, name: str) -> str:
        """The same text.

        Raises:
            TypeError: It is none.
            ValueError: It is empty or holds a token that only images may have.
        """
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a text, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError(f"{name} is empty; say something about the images.")
        tokenizer = self.processor.tokenizer
        typed = self.processor.unlabelled_ids.intersection(tokenizer.encode(text, add_special_tokens=False))
        if typed:
            raise ValueError(
                f"{name} holds {tokenizer.convert_ids_to_tokens(sorted(typed))}, which only images may have; "
                "write it in another way, and give images as `images`."
            )
        return text

    def _check_room(self, tokens: int, new: int) -> None:
        config = self.model.config.text_config
        room = config.max_position_embeddings if hasattr(config, "max_position_embeddings") else None
        if room is not None and tokens + new > room:
            raise ValueError(
                f"The prompt has {tokens} tokens and up to {new} are to follow, but the language model has "
                f"{room} positions; shorten the text, show fewer images or lower `max_new_tokens`."
            )


def _images_end(ids: list[int], processor: MMVLMProcessor) -> int:
    """How many tokens there are up to the end of the last image, its closing tokens included."""
    return max((i + 1 for i, token in enumerate(ids) if token in processor.unlabelled_ids), default=0)
