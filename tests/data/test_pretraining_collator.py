"""Batches of pre-training: hidden words, pairs that do not belong together, hidden patches."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from hf_mm import MMViltImageProcessor, MMViltProcessor, ViltPretrainingCollator
from hf_mm.data.mismatches import random_mismatches
from hf_mm.data.vilt_pretraining import patch_counts, ragged_patch_masks

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "green", "dog", "cat", "##s"]
SIZES = [(32, 32), (32, 48), (48, 32), (16, 16), (32, 40), (40, 32)]
NAMES = ["red dog", "blue dog", "green dogs", "red cat", "blue cats", "green cat"]


@pytest.fixture(scope="module")
def processor():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = MMViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    return MMViltProcessor(images, tokenizer, max_length=8)


def rows(captions=NAMES):
    return [
        {"image": np.full((*SIZES[i % 6], 3), 20 * i, np.uint8), "caption": caption}
        for i, caption in enumerate(captions)
    ]


def test_a_batch_is_what_the_processor_makes_and_what_is_asked(processor):
    batch = ViltPretrainingCollator(processor, patch_share=0.3, patch_size=8)(rows())
    expected = processor([row["image"] for row in rows()], NAMES)
    for name, value in expected.items():
        assert torch.equal(batch[name], value)
    assert {name: tuple(batch[name].shape) for name in sorted(set(batch) - set(expected))} == {
        "bool_masked_patches": (6, 6),
        "itm_image_index": (6,),
        "itm_labels": (6,),
        "mlm_input_ids": (6, 5),
        "mlm_labels": (6, 5),
    }


def test_words_are_hidden_whole_in_their_own_texts_only(processor):
    batch = ViltPretrainingCollator(processor)(rows())
    hidden = batch["mlm_labels"] != -100
    assert (hidden.sum(1) >= 1).all()
    assert torch.equal(batch["mlm_labels"][hidden], batch["input_ids"][hidden])
    assert torch.equal(batch["mlm_input_ids"][~hidden], batch["input_ids"][~hidden])
    dogs = hidden[2]  # [CLS] green dog ##s [SEP]
    assert dogs[2] == dogs[3]


def test_half_of_the_texts_get_the_picture_of_another_row(processor):
    batch = ViltPretrainingCollator(processor)(rows())
    moved = batch["itm_image_index"] != torch.arange(6)
    assert torch.equal(batch["itm_labels"], (~moved).long())
    assert moved.sum() == 3


def test_a_share_of_zero_leaves_a_task_out(processor):
    words = set(ViltPretrainingCollator(processor, mismatch_share=0)(rows()))
    assert {"itm_labels", "itm_image_index", "bool_masked_patches"}.isdisjoint(words)
    pairs = set(ViltPretrainingCollator(processor, word_share=0)(rows()))
    assert {"mlm_labels", "mlm_input_ids"}.isdisjoint(pairs)


def test_texts_never_get_a_picture_they_are_true_of(processor):
    torch.manual_seed(0)
    captions = [["red dog", "a dog"], ["red dog"], ["blue cat"], ["red dog", "blue cat"]]
    true = {
        text: {i for i, others in enumerate(captions) if text in others}
        for of_row in captions
        for text in of_row
    }
    collate, seen = ViltPretrainingCollator(processor, mismatch_share=0.9, word_share=0), set()
    for _ in range(40):
        batch = collate(rows(captions))
        for i, ids in enumerate(batch["input_ids"]):
            text = processor.tokenizer.decode(ids, skip_special_tokens=True)
            if not batch["itm_labels"][i]:
                assert int(batch["itm_image_index"][i]) not in true[text]
                seen.add((text, int(batch["itm_image_index"][i])))
    assert seen == {
        ("red dog", 2),
        ("a dog", 1),
        ("a dog", 2),
        ("a dog", 3),
        ("blue cat", 0),
        ("blue cat", 1),
    }


def test_equal_captions_and_equal_pictures_stay_matched(processor):
    assert ViltPretrainingCollator(processor)(rows(["a dog"] * 4))["itm_labels"].tolist() == [1] * 4
    one = Image.new("RGB", (16, 16))
    same = [{"image": one, "caption": name} for name in NAMES]
    assert ViltPretrainingCollator(processor)(same)["itm_labels"].tolist() == [1] * 6


def test_one_of_several_captions_is_drawn(processor):
    torch.manual_seed(0)
    collate = ViltPretrainingCollator(processor)
    seen = {tuple(collate(rows([["red", "", "blue"]]))["input_ids"][0].tolist()) for _ in range(20)}
    assert seen == {(2, 6, 3), (2, 7, 3)}


def test_torchs_seed_reproduces_a_batch(processor):
    collate, drawn = ViltPretrainingCollator(processor, patch_share=0.3, patch_size=8), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(collate(rows()))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not all(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_a_seed_of_its_own_gives_a_batch_the_same_draw_always(processor):
    first, again = (ViltPretrainingCollator(processor, seed=4)(rows()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    state = torch.get_rng_state()
    other = ViltPretrainingCollator(processor, seed=5)(rows())
    assert torch.equal(torch.get_rng_state(), state)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_mismatches_are_drawn_among_wrong_pictures_only():
    wrong = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    for seed in range(20):
        index, labels = random_mismatches(wrong, 0.99, torch.Generator().manual_seed(seed))
        moved = labels == 0
        assert moved.tolist() == [True, False, True, True]
        assert wrong[torch.arange(4), index][moved].all()
        assert index[1] == 1
        assert random_mismatches(wrong, 0.5, torch.Generator().manual_seed(seed))[1].sum() == 2
    assert random_mismatches(wrong[:1, :1])[1].tolist() == [1]


def test_every_wrong_picture_is_drawn_about_as_often():
    wrong = ~torch.eye(4, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([random_mismatches(wrong, 0.5, generator)[0] for _ in range(1200)])
    counts = torch.stack([(draws == picture).sum(0) for picture in range(4)]).T  # (4 texts, 4 pictures)
    assert torch.equal(counts.diag(), (draws == torch.arange(4)).sum(0))
    assert (counts.diag() - 600).abs().max() < 80
    assert (counts[wrong] - 200).abs().max() < 60


def test_patches_are_hidden_inside_of_each_picture_alone():
    counts = torch.tensor([4, 20, 6])
    masks = ragged_patch_masks(counts, 0.3, torch.Generator().manual_seed(0))
    assert masks.shape == (3, 20)
    assert masks.sum(1).tolist() == [1, 6, 2]
    assert not (masks & (torch.arange(20) >= counts[:, None])).any()
    drawn = torch.stack([ragged_patch_masks(counts, 0.3)[2, :6] for _ in range(100)])
    assert drawn.any(0).all()


def test_patches_are_counted_from_the_mask(processor):
    mask = processor(images=[row["image"] for row in rows()])["pixel_mask"]
    assert patch_counts(mask, 8).tolist() == [4, 6, 6, 4, 4, 4]
    with pytest.raises(ValueError, match="image 0 is 16x16 px, not a multiple of `patch_size`=7"):
        patch_counts(mask, 7)


def test_pictures_can_be_changed_before_they_are_resized(processor):
    mirrored = ViltPretrainingCollator(processor, augment=lambda image: image.rotate(90, expand=True))
    one = [{"image": np.zeros((16, 24, 3), np.uint8), "caption": "a dog"}]
    assert mirrored(one)["pixel_values"].shape == (1, 3, 24, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_share": 1.0}, "`word_share`=1.0 must be from 0, for no such task, to less than 1"),
        ({"mismatch_share": -0.1}, "`mismatch_share`=-0.1 must be from 0"),
        ({"patch_share": 2}, "`patch_share`=2 must be from 0"),
    ],
)
def test_shares_that_are_none_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        ViltPretrainingCollator(processor, **options)


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.mask_token = None
    processor = MMViltProcessor(MMViltImageProcessor(), tokenizer)
    with pytest.raises(ValueError, match="The tokenizer has no `mask_token` to hide words with"):
        ViltPretrainingCollator(processor)
    ViltPretrainingCollator(processor, word_share=0)


def test_faulty_rows_are_named(processor):
    collate = ViltPretrainingCollator(processor)
    with pytest.raises(ValueError, match=r"Row 1 of the batch has no \['caption'\], only \['image'\]; name"):
        collate([*rows(["a dog"]), {"image": rows()[0]["image"]}])
    for bad in ("", [], None, ["", " "], [3]):
        with pytest.raises(
            ValueError, match=r"Row 1 of the batch has .* in 'caption'; give a text or a list"
        ):
            collate([*rows(["a dog"]), {"image": rows()[0]["image"], "caption": bad}])
    with pytest.raises(ValueError, match="Row 0 of the batch, 'image' cannot be read as an image"):
        collate([{"image": b"no", "caption": "a dog"}])
    with pytest.raises(ValueError, match=r"`text` 0 has 11 tokens, .*Shorten it, or pass `truncation=True`"):
        collate(rows(["dog " * 9]))
    cut = ViltPretrainingCollator(processor, truncation=True)(rows(["dog " * 9]))
    assert cut["input_ids"].shape == (1, 8)
    with pytest.raises(ValueError, match="A batch of no rows was given"):
        collate([])
