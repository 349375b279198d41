"""The collator hides patches, leaves the pixels whole and tells Trainer how many patches count."""

import pytest
import torch
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, ViTImageProcessorPil

from hf_mm import MaskedImageCollator, MMViTConfig, MMViTForMaskedImageModeling
from hf_mm.data.synthetic import shapes

PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 32})


def rows(count=3):
    return [shapes(count)[i] for i in range(count)]


@pytest.mark.parametrize("masks", ["random", "block"])
def test_a_batch_has_whole_pixels_masks_and_labels(masks):
    batch = MaskedImageCollator(PROCESSOR, 4, share=0.25, masks=masks)(rows())
    expected = PROCESSOR([row["image"] for row in rows()], return_tensors="pt")["pixel_values"]
    assert_close(batch["pixel_values"], expected, rtol=0, atol=0)
    assert batch["bool_masked_pos"].shape == (3, 64)
    assert batch["bool_masked_pos"].sum(1).tolist() == [16] * 3
    assert torch.equal(batch["labels"] != -100, batch["bool_masked_pos"])


def test_a_seed_hides_the_same_patches_each_time_and_none_does_not():
    seeded, free = (MaskedImageCollator(PROCESSOR, 4, seed=seed) for seed in (5, None))
    assert torch.equal(seeded(rows())["bool_masked_pos"], seeded(rows())["bool_masked_pos"])
    assert not torch.equal(free(rows())["bool_masked_pos"], free(rows())["bool_masked_pos"])


def test_options_reach_the_masks():
    squares = MaskedImageCollator(PROCESSOR, 4, share=0.5, unit=4)(rows())["bool_masked_pos"]
    means = squares.unflatten(1, (2, 4, 2, 4)).float().mean((2, 4))
    assert set(means.flatten().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="`smallest`=0"):
        MaskedImageCollator(PROCESSOR, 4, masks="block", smallest=0)(rows())


def test_trainer_trains_and_evaluates_on_it(tmp_path):
    model = MMViTForMaskedImageModeling(
        MMViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    args = TrainingArguments(
        tmp_path,
        max_steps=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    data, collate = shapes(8), MaskedImageCollator(PROCESSOR, 8, image_column="picture", seed=1)
    data = data.rename_column("image", "picture")
    trainer = Trainer(model, args, data_collator=collate, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert 0 < trainer.evaluate()["eval_loss"] < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4, "masks": "grid"}, "`masks`='grid' is not known"),
        (
            {"patch_size": 4, "image_column": "photo"},
            r"need a column `photo`, they have \['image', 'label'\]",
        ),
        ({"patch_size": 5}, "The processor makes 32x32 px, not a multiple of `patch_size`=5"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedImageCollator(PROCESSOR, **options)(rows())
