"""The region BERTs' encoder: the common contract, packed rows in all presets, and what may be seen."""

import pytest
import torch
from contract import ModelContract
from layers import row_kernel
from peft import LoraConfig, get_peft_model
from region_bert_tiny import MIXED, NAMES, WIDTH, mixed, regions, scrambled, texts, tiny_config
from test_vilt import Waits
from torch.testing import assert_close

from hf_mm.models.region_bert.modeling_region_bert import MMRegionBertModel

LENGTHS, COUNTS = MIXED
STATES = ("last_hidden_state", "region_last_hidden_state", "pooler_output")
ALL_KINDS = ["text", "joint", "region", "cross", "joint", "joint", "co", "text"]
each_preset = pytest.mark.parametrize("name", NAMES)


def tiny(name="uniter", **changes):
    return scrambled(MMRegionBertModel(tiny_config(name, **changes)))


def hidden(batch):
    """Some regions hidden, one of them padding."""
    places = torch.zeros_like(batch["region_mask"]).bool()
    places[0, 1] = places[2, 3] = places[1, 5] = True
    return batch | {"masked_regions": places}


def states_of(output):
    return [output[name] for name in STATES]


def total(output):
    """A number into which every state goes, each differently."""
    weights = [torch.linspace(-1, 2, part.numel()).view_as(part) for part in states_of(output)]
    return sum((part * weight).sum() for part, weight in zip(states_of(output), weights, strict=True))


def gradients(model, output):
    return torch.autograd.grad(total(output), list(model.parameters()))


class TestEncoder(ModelContract):
    """VL-BERT's: whole image, [IMG], [END], an image on every word."""

    model_class = MMRegionBertModel
    answer = "region_last_hidden_state"
    test_every_parameter_gets_a_gradient = None  # a bare encoder has no loss: see below
    test_parts_of_a_batch_add_up_to_its_loss_and_gradient = None
    test_forward_leaves_its_inputs_as_they_were = None
    test_gradient_checkpointing_changes_no_gradient = None

    def config(self, **changes):
        return tiny_config("vl-bert", **changes)

    def inputs(self):
        return hidden(mixed())

    def parts(self):
        return [{name: values[row : row + 1] for name, values in self.inputs().items()} for row in range(3)]


@each_preset
def test_every_parameter_gets_a_gradient_and_no_input_changes(name):
    model, batch = tiny(name), hidden(mixed())
    untouched = {key: values.clone() for key, values in batch.items()}
    total(model.train()(**batch)).backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None] == []
    assert_close(batch, untouched, rtol=0, atol=0)


@each_preset
def test_gradient_checkpointing_changes_no_gradient(name):
    model, batch = tiny(name).train(), hidden(mixed())
    expected = gradients(model, model(**batch))
    model.activation_checkpointing_enable()
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    assert_close(gradients(model, model(**batch)), expected)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@each_preset
def test_packed_tokens_equal_padded_rows(name, kernel):
    """Values and gradients; the padded run is the one that records hidden states."""
    model, batch = tiny(name).train(), hidden(mixed())
    model.set_attn_implementation("eager")
    padded = model(**batch, output_hidden_states=True)
    model.set_attn_implementation(kernel)
    packed = model(**batch)
    assert_close(states_of(packed), states_of(padded), rtol=1e-5, atol=1e-5)
    expected, got = gradients(model, padded), gradients(model, packed)
    scale = max(part.abs().max() for part in expected)
    assert_close([part / scale for part in got], [part / scale for part in expected], rtol=1e-5, atol=1e-6)


def test_blocks_of_all_kinds_follow_one_another_in_any_order():
    changes = {"layers": ALL_KINDS, "region_num_attention_heads": 2, "region_intermediate_size": 20}
    model, batch = tiny(**changes), hidden(mixed())
    model.set_attn_implementation("eager")
    assert_close(states_of(model(**batch)), states_of(model(**batch, output_hidden_states=True)))


@each_preset
def test_flash_kernels_get_tokens_side_by_side(name, monkeypatch):
    calls, model, batch = row_kernel.install(monkeypatch), tiny(name), hidden(mixed())
    expected = states_of(model(**batch))
    model.config._attn_implementation = row_kernel.KERNEL
    assert_close(states_of(model(**batch)), expected, rtol=1e-5, atol=1e-5)
    assert calls


@pytest.mark.parametrize("name", ["lxmert", "vilbert"])
def test_flash_attention_between_padded_rows_is_refused(name, monkeypatch):
    """transformers would hide those words from regions at whose places the rows of regions are padded."""
    row_kernel.install(monkeypatch)
    model, full = tiny(name), {**texts([5, 5]), **regions([4, 4])}
    states = model(**full, output_hidden_states=True)
    model.config._attn_implementation = row_kernel.KERNEL
    assert_close(states_of(model(**full, output_hidden_states=True)), states_of(states), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"in padded rows, .* another kernel than 'flash_attention_2'"):
        model(**mixed(), output_hidden_states=True)


@each_preset
def test_compiled_models_give_the_same(name):
    torch.compiler.reset()
    model, batch = tiny(name), hidden(mixed())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(states_of(compiled(**batch)), states_of(model(**batch)), rtol=1e-5, atol=1e-5)


@each_preset
def test_every_row_equals_the_row_without_any_padding(name):
    model, batch = tiny(name), mixed()
    together, first = model(**batch), model.config.extra_regions
    for row, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        alone = model(
            batch["input_ids"][row : row + 1, :length],
            region_features=batch["region_features"][row : row + 1, :count],
            region_boxes=batch["region_boxes"][row : row + 1, :count],
        )
        words, seen, pooled = (part[row : row + 1] for part in states_of(together))
        assert_close(pooled, alone.pooler_output)
        assert_close(words[:, :length], alone.last_hidden_state)
        assert_close(seen[:, : first + count], alone.region_last_hidden_state)
        assert not words[:, length:].any()
        assert not seen[:, first + count :].any()


@each_preset
def test_padding_is_not_computed(name):
    model, seen = tiny(name), {}
    for part, module in model.named_modules():
        if part.endswith(("fc1", "feature_projection")):
            module.register_forward_hook(lambda module, args, out, part=part: seen.update({part: len(out)}))
    model(**mixed())
    words, config = sum(LENGTHS), model.config
    images = sum(COUNTS) + 3 * config.whole_image_region
    stream = images + 3 * config.end_token
    assert seen.pop("region_embeddings.feature_projection") == images
    joint = {words + stream} if "joint" in config.layers else {words, stream}
    assert set(seen.values()) == joint


@each_preset
def test_padding_may_stand_anywhere(name):
    """In front of a text; between the regions, which then stay where they are."""
    model, batch = tiny(name), mixed()
    expected, first = model(**batch), model.config.extra_regions
    for key in ("input_ids", "attention_mask"):
        for row, length in enumerate(LENGTHS):
            batch[key][row] = batch[key][row].roll(9 - length)
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    for key in ("region_features", "region_boxes", "region_mask"):
        batch[key] = batch[key][:, order]
    out = model(**batch)
    assert_close(out.pooler_output, expected.pooler_output)
    states = expected.region_last_hidden_state
    moved = torch.cat((states[:, :first], states[:, first:][:, order]), dim=1)
    assert_close(out.region_last_hidden_state, moved)


@each_preset
def test_texts_that_share_an_image_name_it(name):
    model, words, seen = tiny(name), texts(LENGTHS), hidden(mixed())
    seen = {key: values[:2] for key, values in seen.items() if key not in words}
    index = torch.tensor([1, 0, 1])
    repeated = {key: values[index] for key, values in seen.items()}
    assert_close(states_of(model(**words, **seen, region_index=index)), states_of(model(**words, **repeated)))


def test_vectors_stand_for_words():
    model, batch = tiny(), mixed()
    vectors = model.get_input_embeddings()(batch["input_ids"])
    expected = model(**batch).pooler_output
    del batch["input_ids"]
    assert_close(model(inputs_embeds=vectors, **batch).pooler_output, expected)


def test_segments_of_a_text_have_vectors_of_their_own():
    model, batch = tiny("oscar"), mixed()
    zeros = torch.zeros_like(batch["input_ids"])
    plain = model(**batch).pooler_output
    assert_close(model(**batch, token_type_ids=zeros).pooler_output, plain)
    assert not torch.allclose(model(**batch, token_type_ids=zeros + 1).pooler_output, plain)


@each_preset
def test_the_feature_of_a_hidden_region_is_nowhere_to_be_seen(name):
    model, batch = tiny(name), hidden(mixed())
    expected = states_of(model(**batch))
    batch["region_features"][batch["masked_regions"]] = 50.0
    assert_close(states_of(model(**batch)), expected)
    batch["region_features"][0, 0] = 50.0
    assert not torch.allclose(model(**batch).pooler_output[0], expected[2][0])


@pytest.mark.parametrize("name", ["vilbert", "vl-bert"])
def test_the_whole_image_is_the_mean_of_the_visible_regions_unless_it_is_given(name):
    model, batch = tiny(name), hidden(mixed())
    visible = batch["region_mask"].bool() & ~batch["masked_regions"]
    means = [row[seen].mean(dim=0) for row, seen in zip(batch["region_features"], visible, strict=True)]
    means = torch.stack(means)
    expected = states_of(model(**batch))
    assert_close(states_of(model(**batch, image_features=means)), expected)
    assert not torch.allclose(model(**batch, image_features=means + 1).pooler_output, expected[2])


@each_preset
def test_text_behind_the_prefix_is_read_by_what_follows_it_alone(name):
    """Packed and padded; the second text of row 1 goes on from place 4."""
    model, batch = tiny(name), mixed()
    prefix = batch["attention_mask"].clone()
    prefix[1, 4:] = 0
    before = model(**batch, prefix_mask=prefix)
    model.set_attn_implementation("eager")
    assert_close(states_of(model(**batch, prefix_mask=prefix, output_hidden_states=True)), states_of(before))
    model.set_attn_implementation("sdpa")
    batch["input_ids"][1, 6] = (batch["input_ids"][1, 6] + 1) % 30
    after = model(**batch, prefix_mask=prefix)
    assert_close(after.region_last_hidden_state, before.region_last_hidden_state)
    same = (after.last_hidden_state == before.last_hidden_state).all(dim=2)
    close = (after.last_hidden_state - before.last_hidden_state).abs().amax(dim=2) < 1e-5
    assert close[1].tolist() == [True] * 6 + [False] * 3
    assert same[1].tolist()[6:] == [False] * 3
    everything = model(**batch, prefix_mask=batch["attention_mask"])
    assert_close(states_of(everything), states_of(model(**batch)))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@each_preset
def test_the_pooled_vector_alone_is_the_same(name, kernel):
    """Values and gradients, packed; and where hidden states are recorded."""
    model, batch = tiny(name, depth=4).train(), hidden(mixed())
    model.set_attn_implementation(kernel)
    whole, alone = model(**batch), model(**batch, only_pooled=True)
    assert alone.to_tuple() == (alone.pooler_output,)
    assert_close(alone.pooler_output, whole.pooler_output)
    got, expected = (pooled_gradients(model, out) for out in (alone, whole))
    scale = max(part.abs().max() for part in expected)
    assert_close([part / scale for part in got], [part / scale for part in expected], rtol=1e-5, atol=1e-6)
    recorded = model(**batch, only_pooled=True, output_hidden_states=True)
    assert_close(recorded.pooler_output, whole.pooler_output)


def pooled_gradients(model, output):
    loss = (output.pooler_output * torch.linspace(-1, 2, output.pooler_output.numel()).view(3, -1)).sum()
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vl-bert", ["joint", "text", "region", "text", "region", "region"]),
        ("lxmert", ["region", "text", "cross", "text", "text", "region"]),
        ("lxmert", ["cross", "region", "joint"]),
        ("lxmert", ["text", "co"]),
        ("vilbert", ["text", "region", "text", "co"]),
        ("vilbert", ["co", "text", "region", "text"]),
        ("vilbert", []),
    ],
)
def test_the_pooled_vector_alone_is_the_same_after_any_blocks(name, layers):
    model, batch = tiny(name, layers=layers), mixed()
    expected = model(**batch).pooler_output
    assert_close(model(**batch, only_pooled=True).pooler_output, expected)


@pytest.mark.parametrize(("name", "counts"), [("uniter", [3]), ("lxmert", [3, 17]), ("vilbert", [3, 3])])
def test_the_last_blocks_compute_nothing_that_is_not_pooled(name, counts):
    """[CLS] of three rows; the whole image in ViLBERT; LXMERT's regions (before: two kinds of tokens)."""
    model, seen = tiny(name), {}
    for part, module in model.named_modules():
        if part.endswith("fc1"):
            module.register_forward_hook(lambda module, args, out, part=part: seen.update({part: len(out)}))
    model(**mixed(), only_pooled=True)
    last = {
        "uniter": ["joint_blocks.1.mlp.fc1"],
        "lxmert": ["cross_blocks.0.text.mlp.fc1", "text_blocks.1.mlp.fc1"],
        "vilbert": ["region_blocks.0.mlp.fc1", "text_blocks.1.mlp.fc1"],
    }[name]
    assert [seen[part] for part in last] == counts
    assert "cross_blocks.0.regions.mlp.fc1" not in seen


def test_states_and_attentions_of_both_streams_are_recorded():
    model, batch = tiny("lxmert", depth=4), mixed()  # 3 text, 2 region, 2 cross
    model.set_attn_implementation("eager")
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    shapes = {
        "hidden_states": [(3, 9, 32)] * 6,
        "region_hidden_states": [(3, 6, 32)] * 4,
        "attentions": [(3, 4, 9, 9)] * 5,
        "region_attentions": [(3, 4, 6, 6)] * 4,
        "cross_attentions": [(3, 4, 9, 6)] * 2,
        "region_cross_attentions": [(3, 4, 6, 9)] * 2,
    }
    for key, wanted in shapes.items():
        assert [tuple(part.shape) for part in out[key]] == wanted, key
        if "attentions" in key:
            assert all(torch.allclose(part.sum(-1), torch.ones(())) for part in out[key])
    real = batch["region_mask"].bool()
    assert not out.cross_attentions[0].transpose(1, 3)[~real].any()
    assert_close(out.region_hidden_states[-1][real], out.region_last_hidden_state[real])


def test_states_of_co_attention_are_recorded():
    model = tiny("vilbert", depth=4)  # 2 text, then twice co, region, text
    model.set_attn_implementation("eager")
    out = model(**mixed(), output_hidden_states=True, output_attentions=True)
    assert [tuple(part.shape) for part in out.hidden_states] == [(3, 9, 32)] * 7
    assert [tuple(part.shape) for part in out.region_hidden_states] == [(3, 7, 24)] * 4
    assert [tuple(part.shape) for part in out.attentions] == [(3, 4, 9, 9)] * 4
    assert [tuple(part.shape) for part in out.region_attentions] == [(3, 4, 7, 7)] * 2
    assert [tuple(part.shape) for part in out.cross_attentions] == [(3, 4, 9, 7)] * 2
    assert [tuple(part.shape) for part in out.region_cross_attentions] == [(3, 4, 7, 9)] * 2


@each_preset
def test_adapters_learn_in_every_preset(name):
    tuned = get_peft_model(tiny(name), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    total(tuned.train()(**mixed())).backward()
    trained = {key for key, weight in tuned.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in key for key in trained)
    assert all(weight.grad is not None for key, weight in tuned.named_parameters() if key in trained)


def test_all_presets_load_where_this_package_is_not(stranger, tmp_path):
    expected = {}
    for name in NAMES:
        model = tiny(name)
        model.save_pretrained(tmp_path / name)
        expected[name] = states_of(model(**mixed()))
    torch.save((mixed(), expected), tmp_path / "expected.pt")
    stranger.run(
        "import sys\n"
        f"batch, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "for name, wanted in expected.items():\n"
        f"    folder = {str(tmp_path)!r} + '/' + name\n"
        "    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        f"    got = [model(**batch)[key] for key in {STATES!r}]\n"
        "    assert all(map(torch.equal, got, wanted)), name\n"
        "assert 'hf_mm' not in sys.modules\n"
    )


@each_preset
def test_a_forward_pass_waits_for_the_device_once_for_all_rows(name, monkeypatch):
    model, tolist, lists = tiny(name), torch.Tensor.tolist, []
    batch = hidden(mixed()) | {"region_index": torch.tensor([2, 0, 1])}
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or tolist(self))
    with Waits() as waits:
        model(**batch)
    assert waits.seen == []
    assert len(lists) == 1


def change(name, place, value):
    batch = mixed()
    batch[name][place] = value
    return batch


def without(*names, **more):
    return {key: values for key, values in mixed().items() if key not in names} | more


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (change("attention_mask", 1, 0), "Row 1 of `input_ids` has no token at all"),
        (change("attention_mask", (1, 4), 0), "Row 1 of `input_ids` has padding between its tokens"),
        (change("region_mask", 2, 0), "Row 2 of the batch has no region: its `region_mask` is 0"),
        ({**texts([15]), **regions([2])}, "rows of 15 tokens but the position table has room for 14"),
        (without("input_ids"), "Give either `input_ids` or `inputs_embeds`"),
        (without("input_ids", input_ids=torch.ones(3).long()), r"must be \(batch, length\), got \(3,\)"),
        ({name: values[:0] for name, values in mixed().items()}, r"`input_ids` must be .* got \(0, 9\)"),
        (
            without("input_ids", inputs_embeds=torch.ones(3, 9, 24)),
            r"`inputs_embeds` must be \(batch, length, 32\), got \(3, 9, 24\)",
        ),
        (without("region_features"), r"Give `region_features`, \(batch, regions, 16\)"),
        (without("region_boxes"), r"Give `region_boxes`, \(3, 6, 4\): `region_location`=\"box7\""),
        (
            without("region_features", region_features=torch.ones(3, 6, 24)),
            "`region_features` is 24 wide, the model was made for 16",
        ),
        (
            without("region_features", region_features=torch.ones(3, 0, WIDTH)),
            r"with at least one region, got \(3, 0, 16\)",
        ),
        (
            without("region_boxes", region_boxes=torch.ones(3, 6, 5)),
            r"`region_boxes` must be \(3, 6, 4\) as `region_features` is \(3, 6, 16\), got \(3, 6, 5\)",
        ),
        (mixed() | {"masked_regions": torch.ones(3, 5)}, r"`masked_regions` must be \(3, 6\)"),
        (mixed() | {"token_type_ids": torch.ones(3, 8).long()}, r"`token_type_ids` must be \(3, 9\)"),
        (mixed() | {"image_features": torch.ones(3, WIDTH)}, "this one has none, leave them out"),
        ({**texts(LENGTHS), **regions(COUNTS[:2])}, "3 texts and the regions of 2 images"),
        (mixed() | {"region_index": torch.zeros(2).long()}, r"`region_index` must be \(3,\) numbers"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(batch, words):
    with pytest.raises(ValueError, match=words):
        tiny()(**batch)


def test_regions_that_take_the_position_behind_the_text_need_room_there():
    with pytest.raises(ValueError, match="rows of 13 tokens but the position table has room for 12"):
        tiny("vl-bert")(**texts([13]), **regions([2]))
