"""What pipelines over codes take and refuse, and that a seed alone decides a picture."""

import numpy as np
import pytest
import torch
from generators.codes_tiny import (
    CLASSES,
    CODES,
    LENGTH,
    PROMPT,
    SIDE,
    VOCABULARY,
    llama,
    masked_pipeline,
    own_vq,
    raster_pipeline,
    stock_vq,
    text_pipeline,
)
from torch.testing import assert_close

from hf_mm import CodeVocabulary, VQAutoregressivePipeline
from hf_mm.generators.autoregressive.picture_codes import codes_of_pictures, pictures_of_codes


@pytest.mark.parametrize("build", [raster_pipeline, masked_pipeline])
def test_a_seed_decides_a_picture_whatever_it_is_drawn_with(build):
    pipe = build()
    together = pipe(class_labels=[0, 1, 2], seed=[5, 6, 9], output_type="pt").images
    pairs = [pipe(class_labels=[0, 1], seed=5, output_type="pt").images]
    pairs += [pipe(class_labels=2, seed=9, output_type="pt").images]
    assert_close(torch.cat(pairs), together, rtol=0, atol=1e-5)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 9)]
    by_generators = pipe(class_labels=[0, 1, 2], generator=generators, output_type="pt").images
    assert_close(by_generators, together, rtol=0, atol=0)


def test_a_seed_may_be_a_number_of_numpy():
    pipe = raster_pipeline()
    drawn = [
        pipe(class_labels=[0, 1], seed=s, output_type="codes").images
        for s in (5, np.int64(5), np.array([5, 6]))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("labels", [[1.7], torch.tensor([1.7])])
@pytest.mark.parametrize("build", [raster_pipeline, masked_pipeline])
def test_a_fraction_is_no_class(build, labels):
    with pytest.raises(TypeError, match=r"`class_labels`\[0\]=1\.7.* is neither the number nor the name"):
        build()(class_labels=labels)
    with pytest.raises(TypeError, match=r"`class_labels` are torch\.float32, but classes are whole numbers"):
        VOCABULARY.class_prefixes(torch.tensor([1.7]))


def test_classes_go_by_number_by_name_and_as_tensor():
    pipe = raster_pipeline()
    wanted = [[VOCABULARY.num_codes + 2], [VOCABULARY.num_codes]]
    for labels in ([2, 0], ["coat", "bag"], ["coat", 0], torch.tensor([2, 0])):
        assert pipe.prefixes(labels).tolist() == wanted
    assert pipe.prefixes("boot", num_images_per_prompt=2).tolist() == [[VOCABULARY.num_codes + 1]] * 2
    assert pipe.prefixes().tolist() == [[VOCABULARY.null_id]]


def test_a_prompt_stands_on_the_right_and_an_empty_one_is_no_condition():
    pipe = text_pipeline()
    words = pipe.tokenizer("a bag", add_special_tokens=False)["input_ids"]
    empty = pipe.vocabulary.null_id
    expected = [empty] * (PROMPT - len(words)) + [empty + 1 + word for word in words]
    assert pipe.prefixes(prompt=["a bag", ""]).tolist() == [expected, [empty] * PROMPT]


def test_a_prompt_changes_what_is_drawn():
    pipe = text_pipeline()
    drawn = [pipe(prompt=text, seed=0, output_type="codes").images for text in ("a red apple", "a bag")]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": [0, 3]}, r"`class_labels`\[1\] is 3, but the model knows the classes 0 to 2"),
        ({"class_labels": -1}, r"`class_labels`\[0\] is -1, but"),
        ({"class_labels": ["bag", "hat"]}, r"`class_labels`\[1\]='hat' is none of \['bag', 'boot', 'coat'\]"),
        ({"class_labels": []}, "No picture is asked for: `class_labels` is empty"),
        ({"class_labels": 0, "prompt": "a bag"}, "`class_labels` and `prompt` cannot be given together"),
        ({"prompt": "a bag"}, "has no tokenizer to read `prompt` by; give `class_labels`"),
        ({"class_labels": 0, "num_images_per_prompt": 0}, "`num_images_per_prompt`=0 must be at least 1"),
        ({"class_labels": [0, 1], "seed": [1]}, "`seed` has 1 entries for 2 pictures"),
        ({"class_labels": 0, "seed": 1, "generator": torch.Generator()}, "say the same thing twice"),
        (
            {"class_labels": 0, "callback_on_step_end_tensor_inputs": ["latents"]},
            r"`callback_on_step_end_tensor_inputs` names \['latents'\]; there are \['codes'\]",
        ),
    ],
)
@pytest.mark.parametrize("build", [raster_pipeline, masked_pipeline])
def test_what_cannot_be_drawn_is_named(build, call, message):
    with pytest.raises(ValueError, match=message):
        build()(**call)


def test_a_prompt_beyond_the_context_is_named():
    with pytest.raises(
        ValueError, match=r"`prompt`\[1\] has 6 tokens, but the model reads 5 at most; shorten"
    ):
        text_pipeline()(prompt=["a bag", "a red apple and a bag"])


def test_a_model_of_texts_knows_no_classes():
    with pytest.raises(ValueError, match=r"`class_labels`\[0\] is 0, but the model knows no classes"):
        text_pipeline()(class_labels=0)


def test_words_of_another_tokenizer_are_named():
    vocabulary = CodeVocabulary(CODES, 0, 10, 3)
    with pytest.raises(
        ValueError, match=r"`prompt`\[0\] has the tokens 4 to 10, but the model knows 10 words"
    ):
        vocabulary.word_prefixes([[4, 10]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"id2label": {0: "bag"}}, "`vocab_size`=20, but 16 codes, 1 classes, the empty condition, 0 words"),
        ({"id2label": {1: "bag", 2: "boot", 3: "coat"}}, "`id2label` must number the classes 0 to 2"),
        ({"code_height": 5}, "17 positions, but a condition of 1 tokens and 20 codes are 21"),
    ],
)
def test_a_transformer_for_something_else_is_refused(parts, message):
    settings = {"id2label": CLASSES, "code_height": SIDE, "code_width": SIDE} | parts
    with pytest.raises(ValueError, match=message):
        VQAutoregressivePipeline(stock_vq(), llama(), None, **settings)


def test_a_padding_token_that_is_a_code_is_refused():
    model = llama()
    model.config.pad_token_id = 0
    with pytest.raises(ValueError, match="`pad_token_id`=0, a token of pictures here"):
        VQAutoregressivePipeline(stock_vq(), model, None, CLASSES, SIDE, SIDE)


@pytest.mark.parametrize("build", [stock_vq, own_vq])
def test_codes_outside_the_codebook_are_named(build):
    codes = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    codes[0, 1, 2] = CODES
    with pytest.raises(ValueError, match=r"`codes`\[0, 1, 2\] is 16 but the codebook ends at 15"):
        pictures_of_codes(build(), codes)
    with pytest.raises(ValueError, match=r"`codes` must be \(batch, height, width\), got \(4, 4\)"):
        pictures_of_codes(build(), codes[0])
    with pytest.raises(ValueError, match=r"must be \(batch, 1, height, width\).*got \(1, 3, 8, 8\)"):
        codes_of_pictures(build(), torch.zeros(1, 3, 8, 8))


def test_a_callback_sees_the_codes_grow_and_may_change_them():
    seen = []

    def watch(pipe, step, timestep, tensors):
        codes = tensors["codes"]
        seen.append((step, timestep, int((codes >= 0).sum())))
        return {"codes": codes.masked_fill(codes == 13, 4)}

    pipe = raster_pipeline()
    call = {"class_labels": [0, 1], "seed": 0, "output_type": "codes"}
    assert (pipe(**call).images == 13).any()
    changed = pipe(**call, callback_on_step_end=watch).images
    assert seen == [(step, step, 2 * (step + 1)) for step in range(LENGTH)]
    assert not (changed == 13).any()


def test_a_bar_counts_the_codes(capsys):
    pipe = raster_pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(class_labels=0, seed=0, output_type="codes")
    assert f"{LENGTH}/{LENGTH}" in capsys.readouterr().err


@torch.no_grad()
def test_codes_that_a_tokenizer_of_diffusers_makes_become_its_pictures():
    vqvae = stock_vq()
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = codes_of_pictures(vqvae, pixels)
    assert codes.shape == (2, SIDE, SIDE)
    assert_close(pictures_of_codes(vqvae, codes), vqvae(pixels).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [raster_pipeline, masked_pipeline])
def test_no_offloading_is_promised(build):
    """Its hooks sit on `forward`; parts of the models are called directly here."""
    with pytest.raises(ValueError, match="no `model_cpu_offload_seq` class attribute is set"):
        build().enable_model_cpu_offload(device="cpu")
