"""DreamBooth's pairs: every picture is seen, the class counts as said, faulty folders are named."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from hf_mm import (
    LatentCollator,
    LatentTextCollator,
    PixelCollator,
    PixelRows,
    PriorCollator,
    SubjectRows,
    draw_class,
    picture_folder,
    train_word_tokenizer,
)

TEXTS = ("a sks dog", "a dog")


def rows(count: int, text: str, size: int = 4) -> PixelRows:
    levels = torch.arange(count).to(torch.uint8)[:, None, None, None].expand(-1, 3, size, size)
    return PixelRows(levels.clone(), texts=((text,),) * count)


def collator(weight: float = 1.0) -> PriorCollator:
    return PriorCollator(PixelCollator(tokenizer=train_word_tokenizer(TEXTS)), weight)


def test_each_row_is_a_picture_of_the_subject_and_one_of_its_class_and_all_are_seen():
    pairs = SubjectRows(rows(2, TEXTS[0]), rows(5, TEXTS[1]))
    levels = [(int(row["pixels"].max()), int(row["prior"]["pixels"].max())) for row in pairs]
    assert levels == [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]
    assert {row["texts"] for row in pairs} == {(TEXTS[0],)}


def test_the_loss_is_that_of_the_subject_and_so_many_times_that_of_the_class():
    pairs = SubjectRows(rows(2, TEXTS[0]), rows(2, TEXTS[1]))
    batch = collator(weight=0.3)([pairs[0], pairs[1]])
    assert batch["pixel_values"].shape == (4, 3, 4, 4)
    assert batch["attention_mask"].sum(1).tolist() == [3, 3, 2, 2]
    errors = torch.tensor([1.0, 2.0, 10.0, 30.0])
    assert_close((batch["row_weights"] * errors).mean(), torch.tensor(1.5 + 0.3 * 20.0))


def test_without_a_class_the_batch_is_of_the_subject_alone():
    alone = SubjectRows(rows(3, TEXTS[0]))
    batch = collator()([alone[0], alone[2]])
    assert len(batch["pixel_values"]) == 2
    assert "row_weights" not in batch


def test_a_folder_is_read_with_one_text_and_cut_to_squares(tmp_path):
    Image.new("RGB", (9, 6), (255, 0, 0)).save(tmp_path / "b.png")
    Image.new("L", (6, 6), 7).save(tmp_path / "a.JPG", "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = picture_folder(tmp_path, 6, "a dog")
    assert found.texts == (("a dog",), ("a dog",))
    assert found.pixels[:, :, 0, 0].tolist() == [[7, 7, 7], [255, 0, 0]]
    assert picture_folder(tmp_path, 3, "a dog", channels=1).pixels.shape == (2, 1, 3, 3)


def test_latents_made_before_stand_beside_texts_read_anew():
    moments = torch.tensor(np.arange(2 * 1 * 1 * 2 * 2 * 2).reshape(2, 1, 1, 2, 2, 2)).float()
    texts = (("a sks dog",), ("a dog",))
    given = [{"moments": moments[n], "number": n, "texts": texts[n]} for n in range(2)]
    make = LatentTextCollator(LatentCollator(), train_word_tokenizer(TEXTS))
    batch = make(given)
    assert_close(batch["latents"], moments[:, 0, 0])
    assert batch["attention_mask"].sum(1).tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"Row 4 has no texts"):
        make([{"moments": moments[0], "number": 4}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubjectRows(PixelRows(rows(2, "a").pixels)), r"`subject` has 2 pictures and no texts"),
        (lambda: SubjectRows(rows(2, "a"), rows(0, "b")), r"`prior` has 0 pictures and texts"),
        (
            lambda: SubjectRows(rows(2, "a"), rows(2, "b", 8)),
            r"the `subject` are \(3, 4, 4\), those of the `prior` \(3, 8, 8\)",
        ),
        (lambda: collator(-1.0), r"`prior_weight`=-1.0 must be 0 or more"),
    ],
)
def test_faulty_pairs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_of_another_class_are_not_taken_for_those_asked_for(tmp_path):
    (tmp_path / "prompt.txt").write_text("a dog")
    with pytest.raises(ValueError, match="has pictures of 'a dog', not of 'a cat'; remove them first"):
        draw_class(None, tmp_path, "a cat", 2, 8)
    with pytest.raises(ValueError, match="`count`=0 must be at least 1"):
        draw_class(None, tmp_path, "a dog", 0, 8)


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no pictures \(\.png, .*; name the folder"):
        picture_folder(tmp_path, 8, "a dog")
