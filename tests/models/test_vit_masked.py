"""Masked image modelling: the common contract, transformers' own, accumulation, a loss that falls, errors."""

import pytest
import torch
from contract import ModelContract
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForMaskedImageModeling

from hf_mm.hub.export import export
from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vit.convert_vit import VIT_CHECKPOINT
from hf_mm.models.vit.modeling_vit import (
    MMViTForImageClassification,
    MMViTForMaskedImageModeling,
    MMViTModel,
)
from hf_mm.objectives.masked_image import random_patch_masks

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def pictures(count=2, height=32, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def masks(count=2, share=0.5):
    return random_patch_masks(count, (4, 4), share, generator=torch.Generator().manual_seed(1))


def tiny(**changes):
    torch.manual_seed(0)
    return MMViTForMaskedImageModeling(MMViTConfig(**(TINY | changes))).eval()


def scrambled(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()


class TestMaskedViT(ModelContract):
    model_class = MMViTForMaskedImageModeling
    answer = "reconstruction"

    def config(self, **changes):
        return MMViTConfig(**(TINY | changes))

    def inputs(self):
        hidden = masks()
        hidden[1, :3] = False  # so that the two rows count differently
        return {
            "pixel_values": pictures(),
            "bool_masked_pos": hidden,
            "labels": torch.where(hidden, 1, -100),
        }


class TestMaskedViTOfNormalizedPatches(TestMaskedViT):
    test_loads_from_the_hub_without_this_package = None  # the file is the same, and the process takes seconds

    def config(self, **changes):
        return super().config(**({"normalize_masked_patches": True, "embedding_norm": True} | changes))


def test_a_checkpoint_of_transformers_gives_the_same_pixels_loss_and_gradients(tmp_path):
    theirs = scrambled(ViTForMaskedImageModeling(ViTConfig(**TINY, encoder_stride=8)))
    theirs.save_pretrained(tmp_path)
    ours, report = MMViTForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same(ours, theirs)


def test_an_exported_model_is_transformers_own(tmp_path):
    ours = scrambled(tiny())
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    theirs, report = ViTForMaskedImageModeling.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report.values()), report
    assert_same(ours, theirs.eval())


def assert_same(ours, theirs):
    got, expected = (model(pictures(), bool_masked_pos=masks()) for model in (ours, theirs))
    assert_close(got.reconstruction, expected.reconstruction, **EXACT)
    assert_close(got.loss, expected.loss, **EXACT)
    got.loss.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    assert_close(
        {name: weight.grad for name, weight in ours.named_parameters()},
        VIT_CHECKPOINT.weights_from(gradients),
        **EXACT,
    )


def test_normalized_targets_cannot_be_exported_and_the_encoder_can(tmp_path):
    tiny(normalize_masked_patches=True).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"`normalize_masked_patches`=True cannot be exported, ViTForMasked"):
        export(tmp_path / "ours", tmp_path / "theirs")
    MMViTModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "encoder")
    assert "model.safetensors" in export(tmp_path / "encoder", tmp_path / "theirs")


def test_hidden_pixels_change_no_prediction():
    model, hidden = tiny(), masks()
    seen = model(pictures(), bool_masked_pos=hidden).reconstruction
    where = hidden.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    changed = torch.where(where, torch.full((), 9.0), pictures())
    assert_close(model(changed, bool_masked_pos=hidden).reconstruction, seen, rtol=0, atol=0)
    assert not torch.equal(model(changed).reconstruction, seen)


def test_without_a_mask_there_is_no_loss():
    assert tiny()(pictures()).loss is None


def test_labels_choose_the_patches_that_count():
    model, hidden = tiny(), masks()
    default = model(pictures(), bool_masked_pos=hidden)
    one = torch.full((2, 16), -100)
    one[0, 5] = 1
    patch = (default.reconstruction - pictures())[0, :, 8:16, 8:16]
    assert_close(model(pictures(), bool_masked_pos=hidden, labels=one).loss, patch.abs().mean())
    every = model(pictures(), bool_masked_pos=hidden, labels=torch.zeros(2, 16, dtype=torch.long)).loss
    assert_close(every, (default.reconstruction - pictures()).abs().mean())


def test_normalized_targets_forget_brightness_and_contrast():
    model, hidden = tiny(normalize_masked_patches=True), masks()
    model.vit.embeddings.patches.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    dark = model(pictures(), bool_masked_pos=hidden).loss
    bright = model(3 * pictures() + 7, bool_masked_pos=hidden).loss
    assert_close(dark, bright, **EXACT)


def test_a_rectangle_of_another_size_is_reconstructed_in_place():
    model = tiny()
    hidden = random_patch_masks(1, (2, 6), 0.5)
    out = model(pictures(1, 16, 48), bool_masked_pos=hidden, interpolate_pos_encoding=True)
    assert out.reconstruction.shape == (1, 3, 16, 48)
    states = model.vit(
        pictures(1, 16, 48), interpolate_pos_encoding=True, bool_masked_pos=hidden
    ).last_hidden_state
    last = model.decoder(states[0, -1]).unflatten(0, (3, 8, 8))
    assert_close(out.reconstruction[0, :, 8:, 40:], last)


def test_the_encoder_goes_on_as_a_classifier(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    head, report = MMViTForImageClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    assert_close(head.vit(pictures()).last_hidden_state, model.vit(pictures()).last_hidden_state)


def test_a_classifier_starts_masked_modelling_with_a_new_mask_token(tmp_path):
    MMViTForImageClassification(MMViTConfig(**TINY)).save_pretrained(tmp_path)
    model, report = MMViTForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"decoder.weight", "decoder.bias", "vit.embeddings.mask_token"}
    assert not report["unexpected_keys"]
    assert 0 < model.vit.embeddings.mask_token.abs().max() < 0.1


@pytest.mark.parametrize(("batch", "steps"), [(2, 4), (3, 3)])
def test_trainer_accumulates_uneven_parts_as_one_large_batch(batch, steps, tmp_path):
    """Also with another number of hidden patches in each image: Trainer counts `labels`."""
    norms = [gradient_norm(tmp_path, *split) for split in ((7, 1), (batch, steps))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def gradient_norm(folder, batch, steps):
    """Of one step of Trainer over the same seven rows."""
    rows = []
    for i, picture in enumerate(pictures(7)):
        hidden = masks(1, share=(i + 1) / 10)[0]
        rows.append(
            {
                "pixel_values": picture,
                "bool_masked_pos": hidden,
                "labels": torch.where(hidden, 1, -100),
            }
        )
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(tiny(), args, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


def test_the_loss_on_hidden_patches_falls():
    """Each picture is of one colour, so what is seen tells what is hidden: guessing the mean gives 0.5."""
    model, generator = tiny().train(), torch.Generator().manual_seed(2)
    colours = torch.rand(16, 3, 1, 1, generator=generator).mul(2).sub(1).expand(-1, -1, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(colours, bool_masked_pos=random_patch_masks(16, (4, 4), 0.6, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bool_masked_pos": torch.zeros(2, 15).bool()}, r"`bool_masked_pos` must be \(2, 16\), .*\(2, 15\)"),
        ({"bool_masked_pos": torch.zeros(2, 16)}, r"got \(2, 16\) of torch.float32"),
        ({"labels": torch.zeros(2).long()}, r"`labels` must be \(2, 16\), -100 where .*, got \(2,\)"),
    ],
)
def test_masks_that_do_not_fit_the_patches_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny()(pictures(), **({"bool_masked_pos": masks()} | changes))


def test_a_model_without_a_mask_token_hides_nothing():
    with pytest.raises(ValueError, match="`bool_masked_pos` needs a mask token, which this model has not"):
        MMViTModel(MMViTConfig(**TINY))(pictures(), bool_masked_pos=masks())


def test_a_stem_is_refused():
    with pytest.raises(ValueError, match=r"`stem_channels`=\[8, 16\]: the windows of a stem overlap"):
        tiny(stem_channels=[8, 16])
