"""Pictures in memory: decoded once, checked on entry, seen in random views that a batch determines."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.testing import assert_close
from torch.utils.data import DataLoader

from hf_mm import PixelCollator, PixelRows, train_caption_tokenizer

SIDE = 6


def picture(seed, side=SIDE, grey=False):
    draw = np.random.default_rng(seed).integers(0, 256, (side, side, 1 if grey else 3), dtype=np.uint8)
    return PILImage.fromarray(np.repeat(draw, 3, 2) if grey else draw)


def data_set(count=5, grey=False, labels=None, side=SIDE):
    features = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "text": List(Value("string"))}
    rows = {
        "image": [picture(seed, side, grey) for seed in range(count)],
        "label": [seed % 3 for seed in range(count)] if labels is None else labels,
        "text": [[f"number {seed}", f"the picture {seed}"] for seed in range(count)],
    }
    return Dataset.from_dict(rows, features=Features(features))


def rows_of(**options):
    return PixelRows.from_dataset(data_set(), SIDE, label_column="label", text_column="text", **options)


def test_pictures_become_bytes_in_their_order():
    rows = rows_of()
    expected = np.stack([np.asarray(picture(seed)).transpose(2, 0, 1) for seed in range(5)])
    assert torch.equal(rows.pixels, torch.from_numpy(expected))
    assert rows.labels.tolist() == [0, 1, 2, 0, 1]
    assert rows.class_names == ("a", "b", "c")
    assert rows[3]["texts"] == ("number 3", "the picture 3")
    assert (rows.image_size, rows.channels, len(rows)) == (SIDE, 3, 5)


def test_black_is_minus_one_and_white_is_one():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).view(1, 1, 4, 4)
    assert PixelRows(pixels).pixel_values().unique().tolist() == [-1.0, 1.0]


def test_a_loader_asks_for_whole_batches_and_single_rows_make_the_same_batch():
    rows, collate = rows_of(), PixelCollator(flip=True, pad_crop_px=2, seed=3)
    whole = next(iter(DataLoader(rows, batch_sampler=[[4, 0, 2]], collate_fn=collate)))
    single = collate([rows[number] for number in (4, 0, 2)])
    assert whole["class_labels"].tolist() == [1, 0, 2]
    assert_close(whole, single, rtol=0, atol=0)


def test_slices_keep_their_places_in_the_whole():
    part = rows_of()[3:]
    assert [row["number"] for row in part] == [3, 4]
    assert torch.equal(part[-1]["pixels"], rows_of()[4]["pixels"])
    with pytest.raises(IndexError):
        part[2]


def test_a_batch_determines_its_views():
    rows, collate = rows_of(), PixelCollator(flip=True, pad_crop_px=2)
    first = collate(rows[[0, 1, 2]])["pixel_values"]
    torch.rand(3)
    assert torch.equal(first, collate(rows[[0, 1, 2]])["pixel_values"])
    assert not torch.equal(first[:1], collate(rows[[0]])["pixel_values"])
    other = PixelCollator(flip=True, pad_crop_px=2, seed=1)(rows[[0, 1, 2]])["pixel_values"]
    assert not torch.equal(first, other)


def test_every_view_is_a_move_or_its_mirror_image_that_repeats_the_edge():
    pixels = rows_of().pixels[:1].repeat(200, 1, 1, 1)
    views = PixelCollator(flip=True, pad_crop_px=1)(PixelRows(pixels))["pixel_values"]
    padded = torch.nn.functional.pad(pixels[:1].float(), (1, 1, 1, 1), mode="replicate") / 127.5 - 1
    moved = [padded[0, :, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    expected = {tuple(view.flatten().tolist()) for one in moved for view in (one, one.flip(2))}
    assert {tuple(view.flatten().tolist()) for view in views} == expected


def test_without_views_pictures_stay():
    rows = rows_of()
    assert torch.equal(PixelCollator()(rows)["pixel_values"], rows.pixel_values())


def test_one_text_of_each_picture_is_drawn_and_padded():
    rows = rows_of()
    texts = [text for row in rows for text in row["texts"]]
    tokenizer = train_caption_tokenizer(texts)
    collate = PixelCollator(tokenizer=tokenizer)
    drawn = set()
    for number in range(5):
        batch = collate(rows[[number, 0]])
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        drawn.add(int(batch["attention_mask"][0].sum()))
    assert len(drawn) == 2  # "number 3" is shorter than "the picture 3"


def test_texts_beyond_the_context_are_named():
    rows = rows_of()
    tokenizer = train_caption_tokenizer([text for row in rows for text in row["texts"]])
    with pytest.raises(ValueError, match=r"Row 4: the text '.* 4' has \d tokens, the context has 2; shorten"):
        PixelCollator(tokenizer=tokenizer, max_text_tokens=2)(rows[[4]])
    with pytest.raises(ValueError, match="`tokenizer` is given but the rows have no texts; make them with"):
        PixelCollator(tokenizer=tokenizer)(PixelRows(rows.pixels))


def test_pictures_of_another_size_are_named_or_resized_when_asked():
    rows = data_set(2, side=9)
    with pytest.raises(ValueError, match=r"Row 0 is 9x9 px, not 6x6; resize the pictures or pass `resize="):
        PixelRows.from_dataset(rows, SIDE)
    resized = PixelRows.from_dataset(rows, SIDE, resize=True)
    expected = np.asarray(picture(1, 9).resize((SIDE, SIDE), PILImage.Resampling.BICUBIC))
    assert torch.equal(resized.pixels[1], torch.tensor(expected.transpose(2, 0, 1)))


def test_colours_do_not_become_grey_in_silence():
    grey = PixelRows.from_dataset(data_set(grey=True), SIDE, channels=1)
    assert grey.pixels.shape == (5, 1, SIDE, SIDE)
    with pytest.raises(ValueError, match="Row 0 has colours but `channels`=1 holds grey pictures only; pass"):
        PixelRows.from_dataset(data_set(), SIDE, channels=1)
    with pytest.raises(ValueError, match="`channels`=4 must be 3"):
        PixelRows.from_dataset(data_set(), SIDE, channels=4)


def test_class_ids_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"Row 1: the class id -1 is not one of 0\.\.2\."):
        PixelRows.from_dataset(data_set(2, labels=[0, -1]), SIDE, label_column="label")
    with pytest.raises(ValueError, match=r"`label_column`='text' has .* not classes; make them by"):
        PixelRows.from_dataset(data_set(2), SIDE, label_column="text")


def test_no_rows_and_unknown_columns_are_errors():
    with pytest.raises(ValueError, match="`dataset` has no rows; there is nothing to learn from"):
        PixelRows.from_dataset(data_set(0), SIDE)
    with pytest.raises(ValueError, match=r"`image_column`='picture' is no column; there are \['image'"):
        PixelRows.from_dataset(data_set(1), SIDE, image_column="picture")
    with pytest.raises(ValueError, match="`image_size`=0 must be at least 1 px"):
        PixelRows.from_dataset(data_set(1), 0)
    with pytest.raises(ValueError, match="A batch of no rows"):
        PixelCollator()([])


def test_wrong_tensors_are_errors():
    with pytest.raises(ValueError, match=r"`pixels` must be uint8 .*, got \(2, 3, 4, 5\) of torch.uint8"):
        PixelRows(torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`labels` has 3 entries for 2 pictures"):
        PixelRows(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(ValueError, match="`pad_crop_px`=-1 must be 0 or more"):
        PixelCollator(pad_crop_px=-1)
