"""A model optimized for inference says what it said before, and can be had back as it was."""

import copy
import logging

import pytest
import torch
from models.vlm_tiny import IMAGE, PAD, VOCAB, batch_of, pictures, text_config, tiny_model, words
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StoppingCriteria,
)

from hf_mm import pack_for_inference
from hf_mm.layers.decode_cache import RoomyLayer
from hf_mm.layers.decode_linear import BlockedLinear, ColumnLinear, DecodingLinear, weight_bytes
from hf_mm.models.vlm.modeling_vlm import MMVLMForConditionalGeneration

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STEPPING = {
    "llama": text_config(),
    "llama, tied": text_config(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "one key head": text_config(num_key_value_heads=1),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "smollm3": SmolLM3Config(**SIZES),
}
OTHERS = {
    "mistral with a window": MistralConfig(**SIZES, sliding_window=6),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=6),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}
PLAIN = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
ROWS = ([IMAGE] * 4 + words(3), words(2, 1) + [IMAGE] * 4 + words(6, 2), [IMAGE] * 4 + words(1, 4))


def model_of(name="llama", dtype=torch.float32):
    """Weights, biases and norms all random: nothing is equal by being zero or one."""
    model = tiny_model(text_config=(STEPPING | OTHERS)[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model.to(dtype)


def written(model, rows=1, **settings):
    """What is generated, with the logits of each token."""
    inputs = batch_of(list(map(list, ROWS[:rows])), side="left")
    pixels = pictures(rows).to(model.dtype)
    detailed = {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, pixel_values=pixels, **(PLAIN | detailed | settings))


def look(model, **more):
    return model(**batch_of([list(ROWS[0])]), pixel_values=pictures(1).to(model.dtype), **more)


def layouts(model):
    return {type(module) for module in model.modules() if isinstance(module, DecodingLinear)}


@pytest.mark.parametrize("name", [*STEPPING, *OTHERS])
def test_logits_of_prompt_and_tokens_are_the_same(name):
    model = model_of(name)
    with torch.no_grad():
        prompt, expected = look(model).logits, written(model)
        assert model.optimize_for_inference() is model
        assert_close(look(model).logits, prompt, rtol=1e-5, atol=1e-5)
        got = written(model)
    assert_close(got.sequences, expected.sequences)
    assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)
    assert layouts(model) == {ColumnLinear}


@pytest.mark.parametrize("name", [*STEPPING, *OTHERS])
def test_the_step_is_taken_by_the_models_it_is_for(name):
    cache = written(model_of(name).optimize_for_inference()).past_key_values
    assert {type(layer) is RoomyLayer for layer in cache.layers} == {name in STEPPING}


@pytest.mark.parametrize("name", STEPPING)
def test_rows_of_one_length_take_the_step_together(name):
    """Three answers to one prompt, which soon differ."""
    model, outputs = model_of(name), []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(written(model, num_return_sequences=3, do_sample=True, temperature=2.0))
        model.optimize_for_inference()
    expected, got = outputs
    assert {type(layer) for layer in got.past_key_values.layers} == {RoomyLayer}
    assert len(got.sequences.unique(dim=0)) == 3
    assert_close(got.sequences, expected.sequences)
    assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "qwen2", "gemma2"])
def test_bfloat16_is_as_near_to_float32_as_before(name):
    exact = torch.stack(written(model_of(name)).logits)
    model = model_of(name, torch.bfloat16)
    plain = written(model)
    got = written(model.optimize_for_inference())
    assert layouts(model) == {BlockedLinear}
    assert_close(got.sequences, plain.sequences)
    before, after = ((torch.stack(out.logits).float() - exact).abs().mean() for out in (plain, got))
    assert after < 1.5 * before + 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rows": 3},
        {"rows": 3, "num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2},
        {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2, "max_new_tokens": 20},
        {"output_hidden_states": True, "output_attentions": False},
    ],
    ids=str,
)
def test_every_way_of_decoding_gives_the_same_tokens(settings):
    model, outputs = model_of("qwen2"), []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(written(model, **settings))
        model.optimize_for_inference()
    assert_close(outputs[1].sequences, outputs[0].sequences)


def test_hidden_states_are_given_when_asked_for():
    model = model_of()
    expected = written(model, output_hidden_states=True).hidden_states
    got = written(model.optimize_for_inference(), output_hidden_states=True).hidden_states
    assert_close(got[3], expected[3], rtol=1e-5, atol=1e-5)


def test_streamers_and_stopping_criteria_are_asked_at_every_token():
    class Seen(StoppingCriteria):
        def __init__(self):
            self.lengths, self.put_tokens = [], []

        def __call__(self, input_ids, scores, **kwargs):
            self.lengths.append(input_ids.shape[1])
            return torch.full((1,), len(self.lengths) == 5)

        def put(self, value):
            self.put_tokens.append(value)

        def end(self):
            self.put_tokens.append("end")

    seen = Seen()
    out = written(model_of().optimize_for_inference(), stopping_criteria=[seen], streamer=seen)
    assert seen.lengths == list(range(len(ROWS[0]) + 1, len(ROWS[0]) + 6))
    assert torch.cat(seen.put_tokens[1:-1]).tolist() == out.sequences[0, -5:].tolist()
    assert seen.put_tokens[-1] == "end"


def test_hooks_that_come_later_see_every_token():
    model, seen = model_of().optimize_for_inference(), []
    expected = written(model).sequences
    handle = model.language_model.model.layers[1].mlp.register_forward_hook(
        lambda *args: seen.append(args[1][0].shape[1])
    )
    assert_close(written(model).sequences, expected)
    assert seen == [len(ROWS[0])] + [1] * 7
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_cache_that_was_cut_is_continued_as_if_new(mode):
    model = model_of().optimize_for_inference()
    first = written(model)
    cache = first.past_key_values
    cache.crop(-3)
    start = first.sequences[:, : cache.get_seq_length()]
    with mode():
        for token in (7, 8, 9):
            one = torch.tensor([[token]])
            start = torch.cat((start, one), dim=1)
            logits = model(one, past_key_values=cache).logits
    with torch.no_grad():
        expected = model(start, pixel_values=pictures(1)).logits[:, -1:]
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_copied_cache_and_its_original_go_their_own_ways():
    model = model_of().optimize_for_inference()
    original = written(model).past_key_values
    copies = [copy.deepcopy(original), copy.copy(original)]
    copies[1].layers = [copy.copy(layer) for layer in original.layers]
    kept = original.layers[0].keys.clone()
    with torch.no_grad():
        for token, cache in enumerate([*copies, original], start=5):
            model(torch.tensor([[token]]), past_key_values=cache)
    last = torch.stack([cache.layers[0].keys[0, 0, -1] for cache in [*copies, original]])
    assert len(last.unique(dim=0)) == 3
    for cache in [*copies, original]:
        assert_close(cache.layers[0].keys[:, :, :-1], kept, rtol=0, atol=0)


def test_a_padded_prompt_is_continued_without_its_padding():
    model = model_of()
    inputs = batch_of([[*words(2)], [*words(6, 2)]], side="left")
    row = {name: value[:1] for name, value in inputs.items()}  # padded on the left, alone
    expected = model.generate(**row, **PLAIN)
    assert_close(model.optimize_for_inference().generate(**row, **PLAIN), expected)


def test_saved_files_are_those_of_the_model_as_it_was(tmp_path):
    for name in ("llama, tied", "qwen2"):
        model = model_of(name)
        model.save_pretrained(tmp_path / "before")
        model.optimize_for_inference().save_pretrained(tmp_path / "after")
        files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("before", "after")]
        assert_close(files[1], files[0], rtol=0, atol=0)
        again = MMVLMForConditionalGeneration.from_pretrained(tmp_path / "after")
        assert_close(written(again).sequences, written(model).sequences)


def test_saved_files_of_bfloat16_are_those_of_the_model_as_it_was(tmp_path):
    model = model_of("llama, tied", torch.bfloat16)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.optimize_for_inference()
    assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_restored_model_learns_as_one_that_was_never_optimized(dtype):
    plain, model = (model_of("llama, tied", dtype) for _ in range(2))
    frozen = "language_model.model.layers.0.mlp.up_proj.weight"
    for each in (plain, model):
        each.get_parameter(frozen).requires_grad_(False)
    written(model.optimize_for_inference())
    assert model.restore_for_training() is model
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    grads = []
    for each in (plain, model):
        labels = batch_of([list(ROWS[0])])["input_ids"]
        look(each.train(), labels=labels.masked_fill(labels == IMAGE, -100)).loss.backward()
        grads.append({name: weight.grad for name, weight in each.named_parameters()})
    assert grads[1].keys() == grads[0].keys()
    assert grads[1][frozen] is None
    for name, grad in grads[1].items():
        assert_close(grad, grads[0][name], rtol=0, atol=0)


def test_optimizing_and_restoring_twice_change_nothing_more():
    model = model_of()
    expected = written(model).sequences
    modules = list(model.optimize_for_inference().modules())
    assert list(model.optimize_for_inference().modules()) == modules
    assert_close(written(model).sequences, expected)
    modules = list(model.restore_for_training().modules())
    assert list(model.restore_for_training().modules()) == modules
    assert "forward" not in vars(model.language_model.model)
    assert_close(written(model.optimize_for_inference()).sequences, expected)


@pytest.mark.parametrize(("name", "more"), [("llama", 0), ("llama, tied", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_grows_by_a_tied_head_and_nothing_else(name, more, dtype, caplog):
    model = model_of(name, dtype)
    before = weight_bytes(model)
    with caplog.at_level(logging.INFO, "hf_mm"):
        model.optimize_for_inference()
    assert weight_bytes(model) == before + more * VOCAB * 32 * dtype.itemsize
    assert f"{before:,} bytes before, {weight_bytes(model):,} after" in caplog.text
    assert weight_bytes(model.restore_for_training()) == before


def test_a_forward_that_was_set_on_the_model_comes_back():
    model, seen = model_of(), []
    decoder = model.language_model.model
    own = decoder.forward
    decoder.forward = lambda **kwargs: seen.append(1) or own(**kwargs)
    expected = decoder.forward
    written(model.optimize_for_inference())
    assert len(seen) == 1  # the prompt; tokens go by steps
    assert vars(model.restore_for_training().language_model.model)["forward"] is expected


def test_training_and_gradients_are_refused():
    model = model_of().optimize_for_inference()
    with pytest.raises(RuntimeError, match=r"has no gradient: call it in `eval\(\)` mode under"):
        look(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="or call `restore_for_training` first"):
        look(model.train())
    with pytest.raises(RuntimeError, match=r"is for inference; call `model.eval\(\)` first"):
        model_of().train().optimize_for_inference()


def test_copying_loading_and_moving_are_refused():
    model, weights = model_of().optimize_for_inference(), model_of().state_dict()
    for work in (lambda: copy.deepcopy(model), lambda: model.load_state_dict(weights)):
        with pytest.raises(RuntimeError, match="cannot be copied, pickled or loaded into"):
            work()
    with pytest.raises(
        RuntimeError, match=r"laid out in torch.float32 .* cannot go to torch.bfloat16 on cpu"
    ):
        model.bfloat16()
    with pytest.raises(AttributeError, match="has no `weight`; call `restore_for_training` first"):
        _ = model.get_output_embeddings().weight
    model.to("cpu", torch.float32)


def test_adapters_have_to_be_merged_first():
    model = model_of()
    adapted = get_peft_model(model.language_model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj` carries an adapter; merge it first"):
        model.optimize_for_inference()
    model.language_model = adapted.merge_and_unload()
    assert layouts(model.optimize_for_inference()) == {ColumnLinear}


def test_weights_of_other_kinds_are_refused_by_name():
    quantised = model_of()
    layer = quantised.language_model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj` holds quantised weights \(torch.int8\)"):
        quantised.optimize_for_inference()
    named = model_of()
    named.language_model.config.quantization_config = {"quant_method": "any"}
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is quantised .* Load it without quantisation"):
        named.optimize_for_inference()
    with pytest.raises(ValueError, match=r"is in torch.float16; weights are laid out in torch.float32 or"):
        model_of(dtype=torch.float16).optimize_for_inference()
    packed = model_of()
    pack_for_inference(packed.language_model)
    with pytest.raises(ValueError, match="is packed by `pack_for_inference`; call `unpack_for_training"):
        packed.optimize_for_inference()


def test_a_processor_without_bfloat16_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    with pytest.raises(RuntimeError, match="no bfloat16 kernels of oneDNN; convert the model to float32"):
        model_of(dtype=torch.bfloat16).optimize_for_inference()


def test_elsewhere_than_on_a_cpu_nothing_is_changed_and_a_warning_says_so(caplog):
    model = model_of().to("meta")
    assert model.optimize_for_inference() is model
    assert not layouts(model)
    assert "changes nothing on meta" in caplog.text
