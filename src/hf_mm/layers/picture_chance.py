"""Where the chance in each picture of a call comes from: seeds, or generators of random numbers."""

from collections.abc import Sequence
from operator import index

import torch

__all__ = ["Generators", "picture_generators"]

Generators = torch.Generator | Sequence[torch.Generator] | None


def picture_generators(
    generator: Generators, seed: int | Sequence[int] | None, pictures: int
) -> torch.Generator | list[torch.Generator] | None:
    """One source of chance for each picture, or one for all.

    Args:
        generator: One for all pictures together, a list with one for each, or none.
        seed: Instead of it, the seed of the first picture, whose followers have the numbers after it; or a
            list with one for each.
        pictures: How many.

    Raises:
        TypeError: A seed is no whole number.
        ValueError: Both are given, or a list is not as long as there are pictures.
    """
    if generator is not None and seed is not None:
        raise ValueError("`generator` and `seed` say the same thing twice; give one of them.")
    if seed is not None:
        seeds = _seeds(seed, pictures)
        generator = [torch.Generator().manual_seed(number) for number in seeds]
        name = "seed"
    else:
        name = "generator"
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    generators = list(generator)
    if len(generators) != pictures:
        raise ValueError(
            f"`{name}` has {len(generators)} entries for {pictures} pictures; give one for each."
        )
    return generators


def _seeds(seed: int | Sequence[int], pictures: int) -> Sequence[int]:
    """One for each picture."""
    try:
        try:
            first = index(seed)  # ty: ignore[invalid-argument-type]
        except TypeError:
            return [index(number) for number in seed]  # ty: ignore[not-iterable]
    except TypeError:
        raise TypeError(f"`seed`={seed!r} must be a whole number, or a list of them.") from None
    return range(first, first + pictures)
