"""Pictures out of a GAN: the contract, conditions by id, name and text, seeds, truncation, films, errors."""

import math

import numpy as np
import pytest
import torch
from generators.gan_tiny import generator, pipeline, text_encoder, words_pipeline
from generators.generator_contract import PipelineContract
from scipy.stats import truncnorm
from torch.testing import assert_close

from hf_mm import GANPipeline
from hf_mm.data.tokenizer import word_tokenizer
from hf_mm.generators.gan.pipeline_gan import spherical_mixture, truncated_normal


class TestClasses(PipelineContract):
    pipeline_class = GANPipeline

    def pipeline(self):
        return pipeline()

    def call(self):
        return {"class_labels": ["shoe", 2]}

    def picture(self):
        return 1, 8, 8


class TestWords(TestClasses):
    """With a tokenizer, in colours."""

    count = 4

    def pipeline(self):
        return words_pipeline()

    def call(self):
        return {"prompt": ["a red apple", "a green pear"], "num_images_per_prompt": 2}


def drawn(pipe, **options):
    return pipe(**options, output_type="pt").images


def test_classes_go_by_id_or_name():
    pipe = pipeline()
    assert_close(drawn(pipe, class_labels=["hat", "bag"], seed=3), drawn(pipe, class_labels=[2, 0], seed=3))
    assert not torch.equal(drawn(pipe, class_labels="hat", seed=3), drawn(pipe, class_labels="bag", seed=3))


def test_pictures_of_one_class_stand_together():
    pipe = pipeline()
    both = drawn(pipe, class_labels=["hat", "bag"], num_images_per_prompt=2, seed=3)
    alone = [
        drawn(pipe, class_labels=name, seed=[3 + n]) for n, name in enumerate(["hat", "hat", "bag", "bag"])
    ]
    assert_close(both, torch.cat(alone), rtol=0, atol=0)


@pytest.mark.parametrize("make", [pipeline, lambda: pipeline(num_classes=None, class_names=None)])
def test_a_picture_depends_on_its_seed_only_bit_for_bit(make):
    """Whatever it is drawn with: 11 pictures fill no chunk of 8."""
    pipe = make()
    together = drawn(pipe, num_images_per_prompt=11, seed=20)
    alone = [drawn(pipe, seed=20 + number) for number in range(11)]
    backwards = drawn(pipe, num_images_per_prompt=11, seed=range(30, 19, -1))
    assert_close(together, torch.cat(alone), rtol=0, atol=0)
    assert_close(together, backwards.flip(0), rtol=0, atol=0)


def test_one_generator_for_all_draws_them_in_turn():
    """Two calls of two pictures are one of four."""
    pipe, source = pipeline(), torch.Generator().manual_seed(1)
    parts = [drawn(pipe, num_images_per_prompt=2, generator=source) for _ in range(2)]
    whole = drawn(pipe, num_images_per_prompt=4, generator=torch.Generator().manual_seed(1))
    assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_generators_may_be_one_for_each_picture():
    pipe = pipeline()
    sources = [torch.Generator().manual_seed(seed) for seed in (5, 9)]
    found = drawn(pipe, class_labels=[0, 1], generator=sources)
    assert_close(found, drawn(pipe, class_labels=[0, 1], seed=[5, 9]), rtol=0, atol=0)


def test_the_pooled_vector_of_a_text_encoder_is_read():
    encoder, words = text_encoder(), word_tokenizer(["a", "red", "green", "bag"])
    model = generator(text_embed_dim=7)
    pipe = GANPipeline(model, words, encoder)
    pipe.set_progress_bar_config(disable=True)
    found = drawn(pipe, prompt=["a red bag"], latents=torch.ones(1, 5))
    vector = encoder(**words(["a red bag"], return_tensors="pt")).text_embeds
    expected = model(torch.ones(1, 5), text_embeds=vector).sample
    assert_close(found, (expected.detach() / 2 + 0.5).clamp(0, 1))


def test_truncation_gives_the_normal_distribution_cut_off():
    """The quantiles of scipy's, in the order of the noise."""
    levels = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    noise = torch.special.ndtri(levels)
    for limit in (0.3, 1.0, 4.0):
        expected = truncnorm.ppf(levels.numpy(), -limit, limit)
        assert_close(truncated_normal(noise, limit).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_truncation_beyond_all_noise_changes_nothing_and_extremes_stay_inside():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert_close(truncated_normal(noise, 50.0), noise)
    assert truncated_normal(torch.tensor([-40.0, 40.0]), 0.5).abs().max() <= 0.5


def test_truncated_pictures_differ_less():
    pipe = pipeline()
    free, usual = (drawn(pipe, class_labels=[0] * 32, seed=0, truncation=t) for t in (None, 0.2))
    assert usual.var(0).mean() < 0.2 * free.var(0).mean()


def test_a_film_begins_and_ends_with_the_pictures_of_its_seeds():
    pipe = pipeline()
    film = pipe.interpolate(seeds=(4, 7, 9), frames=5, class_labels="hat", output_type="pt").images
    assert len(film) == 11
    keys = drawn(pipe, class_labels=["hat"] * 3, seed=[4, 7, 9])
    assert_close(film[::5], keys)
    steps = (film[1:] - film[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 0.7 * (keys[1:] - keys[:-1]).flatten(1).norm(dim=1).max()


def test_a_film_of_one_seed_goes_from_class_to_class():
    pipe = pipeline()
    film = pipe.interpolate(seeds=4, frames=3, class_labels=["hat", "bag"], output_type="pt").images
    ends = drawn(pipe, class_labels=["hat", "bag"], seed=[4, 4])
    assert_close(film[[0, -1]], ends)
    assert not torch.equal(film[1], film[2])


def test_a_film_by_texts_is_made_of_images():
    film = words_pipeline().interpolate(seeds=(0, 1), frames=2, prompt="red apple").images
    assert [picture.size for picture in film] == [(8, 8)] * 3
    assert not np.array_equal(np.asarray(film[0]), np.asarray(film[-1]))


def test_noise_between_two_keeps_its_length():
    """On a sphere: a straight line would pass where no noise ever was."""
    start, end = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    middle = spherical_mixture(start, end, torch.tensor([[0.5]]))
    assert_close(middle, torch.tensor([[1.0, 1.0]]) * 3 / math.sqrt(2))
    third = spherical_mixture(start, end, torch.tensor([[1 / 3]]))
    assert_close(third, 3 * torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
    assert_close(spherical_mixture(start, start, torch.tensor([[0.3]])), start)
    assert spherical_mixture(start, -start, torch.tensor([[0.3]])).isfinite().all()


def test_a_class_is_drawn_by_the_pictures_own_seed():
    pipe = pipeline()
    found = drawn(pipe, num_images_per_prompt=12, seed=0)
    of_each = [drawn(pipe, class_labels=[label] * 12, seed=0) for label in range(3)]
    which = [[torch.equal(found[n], part[n]) for part in of_each] for n in range(12)]
    assert all(sum(row) == 1 for row in which)
    assert all(any(column) for column in zip(*which, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": "coat"}, r"`class_labels`\[0\]='coat' is none of \['bag', 'shoe', 'hat'\]"),
        ({"class_labels": [1, 3]}, r"`class_labels`\[1\] is 3, but the model knows the classes 0 to 2"),
        ({"class_labels": -1}, r"`class_labels`\[0\] is -1, but the model knows the classes 0 to 2"),
        ({"class_labels": []}, r"No picture is asked for: `class_labels` is empty"),
        ({"prompt": "a bag"}, r"reads no texts; leave `prompt` out"),
        ({"seed": [1, 2]}, r"`seed` has 2 entries for 1 pictures"),
        ({"generator": [torch.Generator()] * 3}, r"`generator` has 3 entries for 1 pictures"),
        ({"seed": 1, "generator": torch.Generator()}, r"`seed` and `generator` both say"),
        ({"latents": torch.zeros(1, 4)}, r"`latents` must be \(1, 5\) for 1 pictures, got \(1, 4\)"),
        (
            {"latents": torch.zeros(1, 5), "seed": 0, "truncation": 0.5},
            r"`latents` are the noise as it is, `seed`, `truncation` would have no effect; leave them out",
        ),
        (
            {"latents": torch.zeros(1, 5), "generator": torch.Generator()},
            r"`latents` are the noise as it is, `generator` would have no effect; leave it out",
        ),
        ({"truncation": 0.0}, r"`truncation`=0.0 must be above 0"),
        ({"num_images_per_prompt": 0}, r"`num_images_per_prompt`=0 and `chunk_size`=8 must be at least 1"),
    ],
)
def test_faulty_wishes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(**options)


def test_a_generator_of_ids_alone_says_so():
    with pytest.raises(ValueError, match=r"\[0\]='bag' is no name of a class; there are none, only numbers"):
        pipeline(class_names=None)(class_labels="bag")


def test_texts_that_are_missing_or_too_long_are_named():
    pipe = words_pipeline()
    with pytest.raises(ValueError, match=r"asked by texts; pass `prompt`"):
        pipe()
    with pytest.raises(
        ValueError, match=r"`prompt` 1 has 5 tokens, the context has 4: 'a red red red apple'"
    ):
        pipe(prompt=["an apple", "a red red red apple"])
    with pytest.raises(ValueError, match=r"knows no classes; leave `class_labels` out"):
        pipe(class_labels=0)


def test_a_fraction_is_no_class():
    with pytest.raises(TypeError, match=r"`class_labels`\[0\]=1\.7 is neither the number nor the name"):
        pipeline()(class_labels=[1.7])


def test_numbers_of_numpy_are_numbers():
    pipe = pipeline()
    wanted = drawn(pipe, class_labels=2, seed=3)
    assert_close(drawn(pipe, class_labels=np.int64(2), seed=np.int64(3)), wanted, rtol=0, atol=0)
    film = pipe.interpolate(seeds=np.int64(4), class_labels=np.array([2, 0]), frames=1, output_type="pt")
    wanted = drawn(pipe, class_labels=[2, 0], seed=[4, 4])
    assert_close(film.images, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("prompt", ["x", []])
def test_without_what_reads_texts_that_is_said(prompt):
    with pytest.raises(ValueError, match=r"has no `tokenizer` to read `prompt` by; build it with the one"):
        GANPipeline(generator(vocab_size=8))(prompt=prompt)
    with pytest.raises(ValueError, match=r"has no `text_encoder` to read `prompt` by; build it with the one"):
        GANPipeline(generator(text_embed_dim=7), word_tokenizer(["x"]))(prompt=prompt)


def test_an_empty_list_of_texts_is_named():
    with pytest.raises(ValueError, match=r"No picture is asked for: `prompt` is an empty list"):
        words_pipeline()(prompt=[])


def test_a_tokenizer_with_more_words_than_the_generator_is_refused():
    words = word_tokenizer(["a", "green", "red", "apple", "pear"])
    last = len(words) - 1
    with pytest.raises(ValueError, match=rf"ids up to {last}, but the generator has `vocab_size`={last};"):
        GANPipeline(generator(vocab_size=last), words)


@pytest.mark.parametrize(
    "options", [{"seeds": 3}, {"seeds": (1, 2, 3), "class_labels": [0, 1]}, {"frames": 0}]
)
def test_a_film_needs_two_pictures(options):
    with pytest.raises(ValueError, match=r"make no film; give two pictures at least"):
        pipeline().interpolate(**options)


def test_no_offloading_is_promised():
    """Its hooks sit on `forward`; parts of the models are called directly here."""
    with pytest.raises(ValueError, match="no `model_cpu_offload_seq` class attribute is set"):
        pipeline().enable_model_cpu_offload(device="cpu")
