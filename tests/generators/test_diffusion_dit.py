"""The diffusion transformer: the contract, conditions, what it begins as, derivatives, peers, errors."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from generators.dit_tiny import KINDS, SIZES, WORDS, asked, dit, moved, noisy
from generators.generator_contract import GeneratorModelContract
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import silu
from torch.testing import assert_close

from hf_mm import MMDiTModel
from hf_mm.generators.diffusion.dit_blocks import DiTCrossBlock, DiTJointBlock, DiTSizes

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXTS = ["cross", "joint", "pooled"]


class TestDiT(GeneratorModelContract):
    model_class = MMDiTModel

    def options(self):
        return SIZES | KINDS["all"]

    def inputs(self):
        return asked("all")

    def model(self, **changes):
        return moved(super().model(**changes))


def predicted(model, inputs):
    with torch.no_grad():
        return model(**inputs).sample


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_zero_and_its_layers_as_the_identity(kind):
    model, inputs = MMDiTModel(**SIZES | KINDS[kind]), asked(kind)
    output = model(**inputs).sample
    assert output.shape == (2, KINDS[kind].get("out_channels", 3), 8, 8)
    assert not output.any()
    states, text = torch.randn(2, 16, 16), torch.randn(2, 5, 16)
    for block in model.blocks:
        after, after_text = block(states, torch.randn(2, 1, 16), text, None)
        assert_close(after, states, rtol=0, atol=0)
        assert after_text is None or torch.equal(after_text, text)
    (output - noisy(1).repeat(1, output.shape[1] // 3, 1, 1)).square().mean().backward()
    assert model.proj_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_everything_it_is_asked_by_changes_what_it_predicts(kind):
    model, inputs = dit(**KINDS[kind]), asked(kind)
    expected = predicted(model, inputs)
    for name in inputs.keys() - {"encoder_attention_mask"}:
        changed = predicted(model, inputs | {name: inputs[name].flip(0)})
        assert not torch.allclose(changed, expected, atol=1e-3), name


@pytest.mark.parametrize("mode", TEXTS)
def test_padding_of_a_text_changes_nothing(mode):
    model, inputs = dit(**KINDS[mode]), asked(mode)
    longer = inputs | {
        "encoder_hidden_states": torch.cat(
            [inputs["encoder_hidden_states"], torch.randn(2, 3, WORDS)], dim=1
        ),
        "encoder_attention_mask": torch.cat(
            [inputs["encoder_attention_mask"], torch.zeros(2, 3).long()], dim=1
        ),
    }
    assert_close(predicted(model, longer), predicted(model, inputs))
    first = {name: value[:1] for name, value in inputs.items()}
    short = first | {"encoder_hidden_states": first["encoder_hidden_states"][:, :3]}
    del short["encoder_attention_mask"]
    assert_close(predicted(model, short), predicted(model, first))


@pytest.mark.parametrize("mode", TEXTS)
def test_a_text_without_a_word_is_a_text_however_long_its_padding(mode):
    model, inputs = dit(**KINDS[mode]), asked(mode)
    inputs["encoder_attention_mask"] = torch.zeros_like(inputs["encoder_attention_mask"])
    expected = predicted(model, inputs)
    assert expected.isfinite().all()
    for name in ("encoder_hidden_states", "encoder_attention_mask"):
        inputs[name] = inputs[name][:, :2]
    assert_close(predicted(model, inputs), expected)


@pytest.mark.parametrize("mode", TEXTS)
def test_what_patches_look_at_in_the_text_is_recorded_on_demand(mode):
    model, inputs = dit(**KINDS[mode]), asked(mode)
    with model.record_text_attention() as maps:
        recorded = predicted(model, inputs)
    assert_close(recorded, predicted(model, inputs))
    assert len(maps) == SIZES["num_layers"]
    patches = 16
    for shares in maps:
        assert shares.shape == (2, SIZES["num_heads"], patches, 5)
        assert not shares[0, ..., 3:].any()
        total = shares.sum(dim=-1)
        assert (total > 0).all()
        if mode != "joint":
            assert_close(total, torch.ones_like(total))
        else:
            assert (total < 1).all()


def test_a_time_may_be_a_number_or_one_for_each_picture():
    model = dit()
    expected = predicted(model, {"sample": noisy(), "timestep": torch.tensor([30.0, 30.0])})
    for timestep in (30, 30.0, torch.tensor(30), torch.tensor([30, 30])):
        assert_close(predicted(model, {"sample": noisy(), "timestep": timestep}), expected, rtol=0, atol=0)


def test_without_a_second_time_it_is_asked_for_the_moment():
    model, inputs = dit(second_time=True), asked("none")
    expected = predicted(model, inputs | {"second_timestep": inputs["timestep"]})
    assert_close(predicted(model, inputs), expected, rtol=0, atol=0)


def test_each_patch_comes_back_to_its_place_also_in_oblong_pictures():
    model = MMDiTModel(**SIZES | {"sample_size": (8, 12)})
    nn.init.normal_(model.proj_out.weight)  # layers pass each patch on as it is
    sample = torch.randn(1, 3, 8, 12)
    changed = sample.clone()
    changed[..., 2, 9] += 1
    moved_by = (
        predicted(model, {"sample": sample, "timestep": 1})
        - predicted(model, {"sample": changed, "timestep": 1})
    ).abs()
    place = torch.zeros(8, 12, dtype=torch.bool)
    place[2:4, 8:10] = True
    assert (moved_by.amax(dim=(0, 1)) > 0).equal(place)


@pytest.mark.parametrize("kind", ["classes", "cross", "all"])
def test_forward_mode_derivatives_are_those_of_finite_differences(kind):
    model, inputs = dit(**KINDS[kind]), asked(kind)
    times = {name: inputs.pop(name) for name in ("timestep", "second_timestep") if name in inputs}
    sample, direction = inputs.pop("sample"), noisy(1)

    def answer(sample, *moments):
        return model(sample, **dict(zip(times, moments, strict=True)), **inputs).sample

    ones = tuple(torch.ones(2) for _ in times)
    output, change = torch.func.jvp(answer, (sample, *times.values()), (direction, *ones))
    assert_close(output, model(sample, **times, **inputs).sample, rtol=1e-4, atol=1e-5)
    step = 2**-6
    ahead, behind = (
        answer(sample + sign * step * direction, *(moment + sign * step for moment in times.values()))
        for sign in (1, -1)
    )
    expected = ((ahead - behind) / (2 * step)).detach()
    assert_close(change.detach(), expected, rtol=0, atol=0.01 * expected.abs().max().item())
    output.square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_layer_with_cross_attention_is_that_of_diffusers():
    torch.manual_seed(0)
    theirs = moved(
        BasicTransformerBlock(
            16,
            2,
            8,
            cross_attention_dim=16,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=3,
            attention_bias=True,
            norm_elementwise_affine=False,
            norm_type="ada_norm_zero",
            norm_eps=1e-6,
        )
    )
    ours = DiTCrossBlock(DiTSizes(16, 2, 64, qk_norm=False, norm_eps=1e-6, mlp_norm_eps=1e-6))
    ours.modulation.load_state_dict(theirs.norm1.linear.state_dict())
    ours.mlp.fc1.load_state_dict(theirs.ff.net[0].proj.state_dict())
    ours.mlp.fc2.load_state_dict(theirs.ff.net[2].state_dict())
    ours.attn.load_state_dict(theirs.attn1.state_dict())
    ours.cross_attn.load_state_dict(theirs.attn2.state_dict())
    times, classes = torch.tensor([3, 700]), torch.tensor([0, 2])
    condition = silu(theirs.norm1.emb(times, classes, torch.float32)).unsqueeze(1).detach()
    seen = asked("cross")["encoder_attention_mask"].bool()
    answers = []
    for ask in (
        lambda states, text: ours(states, condition, text, seen[:, None, None])[0],
        lambda states, text: theirs(
            states,
            encoder_hidden_states=text,
            encoder_attention_mask=torch.where(seen, 0.0, -torch.inf)[:, None],
            timestep=times,
            class_labels=classes,
        ),
    ):
        states, text = (torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n)) for n in (9, 5))
        states, text = states.requires_grad_(), text.requires_grad_()
        output = ask(states, text)
        output.square().mean().backward()
        answers.append((output.detach(), states.grad, text.grad))
    assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_layer_with_joint_attention_is_that_of_diffusers(is_last):
    torch.manual_seed(0)
    theirs = moved(JointTransformerBlock(16, 2, 8, context_pre_only=is_last, qk_norm="rms_norm"))
    ours = DiTJointBlock(DiTSizes(16, 2, 64, qk_norm=True, norm_eps=1e-6, mlp_norm_eps=1e-6), is_last)
    ours.modulation.load_state_dict(theirs.norm1.linear.state_dict())
    ours.mlp.fc1.load_state_dict(theirs.ff.net[0].proj.state_dict())
    ours.mlp.fc2.load_state_dict(theirs.ff.net[2].state_dict())
    of_text = theirs.norm1_context.linear.state_dict()
    if is_last:  # scale and shift change places there
        of_text = {name: torch.cat(weight.chunk(2)[::-1]) for name, weight in of_text.items()}
    else:
        ours.text_mlp.fc1.load_state_dict(theirs.ff_context.net[0].proj.state_dict())
        ours.text_mlp.fc2.load_state_dict(theirs.ff_context.net[2].state_dict())
    ours.text_modulation.load_state_dict(of_text)
    known = ours.attn.state_dict()
    ours.attn.load_state_dict({name: w for name, w in theirs.attn.state_dict().items() if name in known})
    embedding = torch.randn(2, 16)
    answers = []
    for ask in (
        lambda states, text: ours(states, silu(embedding).unsqueeze(1), text, None),
        lambda states, text: theirs(states, text, embedding)[::-1],
    ):
        states, text = (torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n)) for n in (9, 5))
        states, text = states.requires_grad_(), text.requires_grad_()
        output, output_text = ask(states, text)
        loss = output.square().mean() + (0 if output_text is None else output_text.square().mean())
        loss.backward()
        answers.append((output.detach(), output_text, states.grad, text.grad))
    for ours_is, theirs_is in zip(*answers, strict=True):
        if theirs_is is not None:
            assert_close(ours_is, theirs_is, rtol=1e-5, atol=1e-5)
    assert (answers[0][1] is None) is is_last


def test_a_pooled_text_is_told_with_the_time_as_in_diffusers():
    torch.manual_seed(0)
    model, theirs = dit(**KINDS["pooled"]), moved(CombinedTimestepTextProjEmbeddings(16, WORDS))
    model.time_embed.load_state_dict(theirs.timestep_embedder.state_dict())
    model.pooled_embed.load_state_dict(theirs.text_embedder.state_dict())
    states, mask = (asked("pooled")[f"encoder_{name}"] for name in ("hidden_states", "attention_mask"))
    pooled = torch.stack([states[0, :3].mean(0), states[1].mean(0)])  # by hand
    times = torch.tensor([3.0, 700.0])
    expected = theirs(times, pooled)
    assert_close(model.time_embed(times, torch.float32) + model.pooled_embed(states, mask), expected)
    assert_close(model.pooled_embed(states[1:], None), model.pooled_embed(states, mask)[1:])


def test_the_kernel_is_the_one_diffusers_is_set_to():
    model, kernels = dit(), {}
    for backend in ("native", "_native_math"):
        with attention_backend(backend), torch.profiler.profile() as profile, torch.no_grad():
            model(noisy(), 3)
        kernels[backend] = {event.key for event in profile.key_averages()}
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert fused in kernels["native"]
    assert fused not in kernels["_native_math"]


def test_a_stock_pipeline_of_diffusers_draws_with_it():
    pipe = DDPMPipeline(unet=dit(), scheduler=DDPMScheduler(num_train_timesteps=10))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 3)


def test_low_rank_adapters_find_the_layers_of_attention():
    inputs = asked("cross")
    model = dit(**KINDS["cross"])
    expected = predicted(model, inputs)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=ATTENTION))
    learning = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(learning) == 2 * len(ATTENTION) * 2 * SIZES["num_layers"]  # two attentions, A and B
    assert_close(predicted(adapted, inputs), expected)
    adapted(**inputs).sample.square().mean().backward()
    assert all(weight.grad.abs().max() > 0 for name, weight in adapted.named_parameters() if "lora_B" in name)


def test_diffusers_adds_and_saves_low_rank_adapters(tmp_path):
    inputs, config = asked("cross"), LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=False)
    model = dit(**KINDS["cross"])
    plain = predicted(model, inputs)
    model.add_adapter(config, adapter_name="style")
    expected = predicted(model, inputs)
    model.save_lora_adapter(tmp_path, adapter_name="style")
    again = dit(**KINDS["cross"])
    again.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert_close(predicted(again, inputs), expected)
    assert not torch.allclose(expected, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample_size": 9}, "`sample_size`=9 must be a multiple of `patch_size`=2"),
        ({"num_heads": 3}, "`hidden_size`=16 must be a multiple of `num_heads`=3"),
        ({"hidden_size": 18}, "`hidden_size`=18 must be a multiple of `num_heads`=2, and of 4"),
        ({"text_mode": "both"}, "`text_mode` must be 'cross' or 'joint', got 'both'"),
        ({"text_pooling": True}, "`text_pooling` needs a text; give `text_dim`"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MMDiTModel(**SIZES | options)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "none",
            {"sample": torch.zeros(3, 8, 8)},
            r"`sample` must be \(batch, 3, height, width\), got \(3, 8, 8\)",
        ),
        ("none", {"sample": torch.zeros(2, 3, 8, 7)}, "`sample` is 8x7, not a multiple of `patch_size`=2"),
        ("none", {"class_labels": torch.tensor([0, 1])}, "`num_classes`=None, but `class_labels` are given"),
        ("classes", {"class_labels": None}, "`num_classes`=3, but `class_labels` are missing"),
        ("none", {"encoder_hidden_states": torch.zeros(2, 5, 6)}, "`text_dim`=None, but .* are given"),
        ("cross", {"encoder_hidden_states": None}, "`text_dim`=6, but .* are missing; for no text"),
        ("cross", {"encoder_hidden_states": torch.zeros(2, 5, 7)}, r"\(batch, tokens, 6\), got \(2, 5, 7\)"),
        ("joint", {"encoder_attention_mask": torch.ones(2, 4)}, r"is \(2, 4\), but the text is \(2, 5\)"),
        ("none", {"second_timestep": 3}, "`second_timestep` is given to a model without one"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_given(kind, changes, words):
    inputs = {name: value for name, value in (asked(kind) | changes).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        dit(**KINDS[kind])(**inputs)


def test_nothing_is_recorded_where_nothing_is_read():
    with (
        pytest.raises(ValueError, match=r"reads no text.*build it with `text_dim`"),
        dit().record_text_attention(),
    ):
        pass
