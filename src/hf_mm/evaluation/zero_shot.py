"""Classes by their names alone: a picture belongs to the class whose prompts it resembles most.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1
(https://arxiv.org/abs/2103.00020). Several prompts per class are ensembled in the space of embeddings: the
mean of their vectors, scaled to length 1 again where the model compares angles.

Shapes: N pictures, K classes, T templates, P width of the shared space.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .features import compare, encode_images, encode_texts, is_euclidean

__all__ = ["PROMPTS", "ZeroShotClassifier", "class_embeddings"]

PROMPTS = (
    "{}",
    "a {}",
    "the {}",
    "this is a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "a picture with a {} in it",
    "what you see here is a {}",
    "a {}, seen from the front",
    "a {}, seen from the side",
    "a {}, seen from above",
    "a {} far away",
    "a {} that fills the picture",
    "part of a {}",
    "a {} on a plain background",
    "a {} among other things",
    "a {} in bright light",
    "a {} in the dark",
    "a {}, out of focus",
    "a {} in black and white",
)
"""Templates for any picture, none tuned on a data set: how made, whence seen, where, in what light."""

TOP = 5


def class_embeddings(
    model: Any,
    processor: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = PROMPTS,
    batch_size: int = 256,
    progress: bool = True,
) -> Tensor:
    """One vector per class: the mean over its prompts.

    Args:
        model: See `encode_images`.
        processor: Its processor or tokenizer.
        class_names: K names, each once.
        templates: T texts with `{}` where the name belongs.
        batch_size: Prompts at a time.
        progress: Show a progress bar.

    Returns:
        (K, P) float32 on the CPU.

    Raises:
        ValueError: There are no classes or templates, a name is empty or comes twice, a template has no `{}`.
        TypeError: `class_names` or `templates` is one text.
    """
    _check_names(class_names)
    _check_templates(templates)
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = encode_texts(model, processor, prompts, batch_size, progress)
    means = embeds.unflatten(0, (len(class_names), len(templates))).mean(dim=1)  # (K, T, P) to (K, P)
    return means if is_euclidean(model) else normalize(means, dim=-1)


class ZeroShotClassifier:
    """A classifier made of class names; prompts are encoded once, when it is built.

        classifier = ZeroShotClassifier(model, processor, ["circle", "triangle"])
        names = [classifier.class_names[k] for k in classifier.predict(images)]

    Args:
        model: An `MMCLIPModel`, or transformers' `CLIPModel` and its like. Train it further, and build anew.
        processor: Its processor.
        class_names: K names, each once.
        templates: Texts with `{}` where the name belongs.
        batch_size: Pictures at a time.
        progress: Show progress bars.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        class_names: Sequence[str],
        templates: Sequence[str] = PROMPTS,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        self.model, self.processor = model, processor
        self.batch_size, self.progress = batch_size, progress
        self.class_embeds = class_embeddings(model, processor, class_names, templates, progress=progress)
        self.class_names = list(class_names)

    def logits(self, images: Iterable[Any]) -> Tensor:
        """Similarities (N, K) of pictures to classes, with the model's temperature in them."""
        embeds = encode_images(self.model, self.processor, images, self.batch_size, self.progress)
        return compare(self.model, embeds, self.class_embeds)

    def probabilities(self, images: Iterable[Any]) -> Tensor:
        """Shares of 1 (N, K): the softmax over the classes."""
        return self.logits(images).softmax(dim=-1)

    def predict(self, images: Iterable[Any]) -> Tensor:
        """The nearest class of each picture, (N,) indices into `class_names`."""
        return self.logits(images).argmax(dim=-1)

    def accuracy(self, images: Iterable[Any], labels: Sequence[int]) -> float:
        """Share of pictures whose class is found; see `results` for more."""
        return self.results(images, labels)["accuracy"]

    def results(self, images: Iterable[Any], labels: Sequence[int]) -> dict[str, float]:
        """What `write_results` can write.

        Args:
            images: N pictures.
            labels: N indices into `class_names`.

        Returns:
            `accuracy`, `accuracy_top5` where there are more than five classes, `accuracy_per_class` (the mean
            over the classes that occur), `chance`, all as shares of 1; `images` and `classes`, their numbers.

        Raises:
            ValueError: Not as many labels as pictures, or a label that is no class.
        """
        logits, classes = self.logits(images), len(self.class_names)
        wanted = _checked_labels(labels, len(logits), classes)
        hits = (logits.argmax(dim=-1) == wanted).double()
        per_class = [hits[wanted == k].mean() for k in wanted.unique()]
        results = {"accuracy": float(hits.mean())}
        if classes > TOP:
            among = (logits.topk(TOP, dim=-1).indices == wanted[:, None]).any(dim=-1)
            results["accuracy_top5"] = float(among.double().mean())
        return {
            **results,
            "accuracy_per_class": float(torch.stack(per_class).mean()),
            "chance": 1 / classes,
            "images": len(logits),
            "classes": classes,
        }


def _check_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        raise TypeError(f"`class_names` is the text {class_names!r}; give a list of names.")
    if not len(class_names):
        raise ValueError("`class_names` is empty; give at least one name.")
    seen: dict[str, int] = {}
    for number, name in enumerate(class_names):
        if not name.strip():
            raise ValueError(f"`class_names` {number} is {name!r}; a class is found by its name only.")
        if name in seen:
            raise ValueError(
                f"`class_names` has {name!r} twice, at {seen[name]} and {number}; pictures could not be told "
                "apart by it: rename or merge the classes."
            )
        seen[name] = number


def _check_templates(templates: Sequence[str]) -> None:
    if isinstance(templates, str):
        raise TypeError(f"`templates` is the text {templates!r}; give a list of templates.")
    if not len(templates):
        raise ValueError("`templates` is empty; give at least one, such as '{}'.")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"The template {template!r} has no place for the name; write {{}} there.")


def _checked_labels(labels: Sequence[int], images: int, classes: int) -> Tensor:
    if len(labels) != images:
        raise ValueError(f"{len(labels)} labels for {images} images; give one for each.")
    wanted = torch.as_tensor(list(labels), dtype=torch.long)  # (N,)
    wrong = ((wanted < 0) | (wanted >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"image {row}: label {int(wanted[row])} is not in 0..{classes - 1}, the class names."
        )
    return wanted
