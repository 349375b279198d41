"""generate(): every way of decoding agrees with the row decoded alone, greedily, without a cache."""

import pytest
import torch
from models.vlm_tiny import IMAGE, batch_of, pictures, tiny_model, words
from torch.testing import assert_close
from transformers import GenerationConfig

ROWS = (
    [IMAGE] * 4 + words(3),
    words(2, 1) + [IMAGE] * 4 + words(1, 2) + [IMAGE] * 4 + words(4, 3),
    words(7, 4),
)
LOOKS = ((0, 1), (1, 3), (3, 3))  # the pictures of each row: first, behind the last
PLAIN = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def alone(model, index, **settings):
    first, last = LOOKS[index]
    look = {"pixel_values": pictures(3)[first:last]} if last > first else {}
    inputs = batch_of([list(ROWS[index])]) | look
    out = model.generate(**inputs, **(PLAIN | settings))
    return out[:, inputs["input_ids"].shape[1] :]


def together(model, **settings):
    inputs = batch_of(list(map(list, ROWS)), side="left") | {"pixel_values": pictures(3)}
    out = model.generate(**inputs, **(PLAIN | settings))
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=5)


def test_greedy_decoding_follows_the_logits(model):
    """The closed form: append the best next token, look again, nothing cached."""
    row, look = list(ROWS[1]), pictures(3)[1:3]
    for _ in range(6):
        logits = model(**batch_of([row]), pixel_values=look).logits[0, -1]
        logits[IMAGE] = -torch.inf
        row.append(int(logits.argmax()))
    assert_close(alone(model, 1)[0], torch.tensor(row[-6:]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_each_row_of_a_batch_equals_the_row_alone(model, settings):
    got = together(model, **settings)
    for index in range(len(ROWS)):
        assert_close(got[index : index + 1], alone(model, index, **settings))


def test_static_and_dynamic_caches_agree(model):
    assert_close(together(model, cache_implementation="static"), together(model))


def test_several_sequences_per_row_keep_their_own_images(model):
    got = together(model, num_beams=3, num_return_sequences=2).unflatten(0, (3, 2))
    for index in range(len(ROWS)):
        assert_close(got[index], alone(model, index, num_beams=3, num_return_sequences=2))


def test_sampling_is_reproducible_and_draws_no_image_token(model):
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(together(model, do_sample=True, temperature=5.0, max_new_tokens=40))
    assert_close(*drawn)
    assert not (drawn[0] == IMAGE).any()
    assert len(drawn[0].unique()) > 10


def test_images_encoded_once_serve_many_questions(model):
    look = pictures(1)
    encoded = model.get_image_features(look)
    for seed in range(2):
        inputs = batch_of([[IMAGE] * 4 + words(3, seed)])
        expected = model.generate(**inputs, pixel_values=look, **PLAIN)
        got = model.generate(**inputs, mm_encoder_outputs={"image": encoded}, **PLAIN)
        assert_close(got, expected)


def test_the_tower_runs_once_per_call(model):
    calls = []
    handle = model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    together(model)
    handle.remove()
    assert len(calls) == 1


def test_generation_config_survives_saving(tmp_path):
    model = tiny_model()
    model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=7, suppress_tokens=[IMAGE])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == 7
