"""Batches of the pre-training of region BERTs: each task asks what it promises, by the seed, once."""

import pytest
import torch
from models.regions_tiny_rows import CLASSES, WIDTH, WORDS, regions, tokenizer

from hf_mm import MMRegionProcessor, RegionPretrainingCollator, pretraining_items

NAMES = ["a red dog", "blue dog", "a cat", "red cats", "is it blue ?", "it is a dog"]
BASE = ["input_ids", "attention_mask", "token_type_ids", "region_features", "region_boxes", "region_mask"]
UNITER = {"mlm": 2.0, "itm": 2.0, "mrfr": 1.0, "mrc_kl": 1.0}
LABELS = {"yes": 0, "no": 1}
ALL = [
    "mlm",
    "itm",
    "wra",
    "mrfr",
    "smooth",
    "mrc",
    "mrc_kl",
    "object",
    "attribute",
    "tags",
    "answer",
    "caption",
]


def processor_of(**options):
    return MMRegionProcessor(tokenizer(), **options)


def collator(tasks, max_tags=0, **options):
    options = {"label2id": LABELS} | options if "answer" in tasks else options
    return RegionPretrainingCollator(processor_of(max_tags=max_tags), tasks, **options)


def rows(captions=NAMES, **changes):
    return [
        {
            "regions": regions(2 + i % 4, seed=i, **changes),
            "caption": caption,
            "answer": [None, "yes", "no"][i % 3],
        }
        for i, caption in enumerate(captions)
    ]


def seeded(tasks, seed=0, of=None, **options):
    return collator(tasks, seed=seed, **options)(rows() if of is None else of)


def text(ids):
    return " ".join(WORDS[i] for i in ids.tolist() if i)


def test_all_tasks_at_once_have_their_columns_and_no_others():
    batch = seeded(ALL, max_tags=2)
    assert batch.pop("tasks") == ALL
    shapes = {name: tuple(value.shape) for name, value in batch.items() if name not in BASE}
    length = batch["input_ids"].shape[1]
    assert shapes == {
        "mlm_input_ids": (6, length),
        "mlm_labels": (6, length),
        "masked_regions": (6, 5),
        "region_class_labels": (6, 5),
        "region_class_scores": (6, 5, CLASSES),
        "object_labels": (6, 5),
        "attribute_labels": (6, 5),
        "itm_region_index": (6,),
        "itm_labels": (6,),
        "tag_input_ids": tuple(batch["tag_input_ids"].shape),
        "tag_attention_mask": tuple(batch["tag_input_ids"].shape),
        "tag_token_type_ids": tuple(batch["tag_input_ids"].shape),
        "tag_labels": (6,),
        "answer_labels": (6,),
        "caption_labels": (6, length),
    }
    expected = processor_of(max_tags=2)(NAMES, [row["regions"] for row in rows()])
    assert all(torch.equal(batch[name], expected[name]) for name in BASE)


def test_hidden_regions_are_asked_for_what_the_detector_said_of_them_alone():
    batch = seeded(["mrfr", "mrc", "mrc_kl", "object", "attribute"], region_share=0.4)
    masked, real = batch["masked_regions"], batch["region_mask"].bool()
    assert masked.any(1).all()
    assert not (masked & ~real).any()
    for row, found in enumerate(rows()):
        hidden = masked[row, : len(found["regions"]["boxes"])]
        for column, name in (
            ("region_class_labels", "labels"),
            ("object_labels", "labels"),
            ("attribute_labels", "attributes"),
        ):
            assert torch.equal(batch[column][row][masked[row]], found["regions"][name][hidden])
        scores = found["regions"]["class_scores"]
        assert torch.equal(batch["region_class_scores"][row, : len(scores)], scores)
    for column in ("region_class_labels", "object_labels", "attribute_labels"):
        assert (batch[column][~masked] == -100).all()


def test_without_labels_the_class_with_the_highest_score_is_the_label():
    batch = seeded(["mrc"], of=rows(labels=None))
    for row, found in enumerate(rows()):
        masked = batch["masked_regions"][row]
        best = found["regions"]["class_scores"].argmax(1)
        assert torch.equal(batch["region_class_labels"][row][masked], best[masked[: len(best)]])


def test_overlapping_regions_are_hidden_together():
    picture = regions(
        5, boxes=torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1], *[[0.5, 0.5, 0.6, 0.6]] * 2])
    )
    collate = collator(["mrfr"], region_share=0.2)
    seen = set()
    torch.manual_seed(0)
    for _ in range(30):
        seen.add(tuple(collate([{"regions": picture, "caption": "a dog"}])["masked_regions"][0].tolist()))
    assert seen == {
        (True, True, False, False, False),
        (False, False, True, False, False),
        (False,) * 3 + (True,) * 2,
    }


def test_words_of_texts_and_of_tags_are_hidden():
    seen = set()
    for seed in range(30):
        batch = seeded(["mlm"], seed, max_tags=2)
        hidden = batch["mlm_labels"] != -100
        assert torch.equal(batch["mlm_labels"][hidden], batch["input_ids"][hidden])
        assert torch.equal(batch["mlm_input_ids"][~hidden], batch["input_ids"][~hidden])
        assert (hidden.sum(1) >= 1).all()
        seen |= set(batch["token_type_ids"][hidden].tolist())
    assert seen == {0, 1}


def test_half_of_the_texts_get_the_regions_of_a_row_they_are_not_true_of():
    captions = [["a red dog", "a dog"], ["a red dog"], ["blue cat"], ["a dog", "blue cat"]]
    true = [
        {i for i, of_row in enumerate(captions) if text in of_row} for of_row in captions for text in of_row
    ]
    by_text = dict(zip([text for of_row in captions for text in of_row], true, strict=True))
    seen = set()
    for seed in range(60):
        batch = seeded(["itm"], seed, rows(captions))
        moved = batch["itm_region_index"] != torch.arange(4)
        assert torch.equal(batch["itm_labels"], (~moved).long())
        assert moved.sum() == 2
        for i in moved.nonzero().flatten().tolist():
            told = text(batch["input_ids"][i]).removeprefix("[CLS] ").removesuffix(" [SEP]")
            assert int(batch["itm_region_index"][i]) not in by_text[told]
            seen.add(told)
    assert seen == set(by_text)


def test_rows_of_one_picture_stay_matched():
    same = [{"regions": regions(3), "caption": name} for name in NAMES]
    assert seeded(["itm"], of=same)["itm_labels"].tolist() == [1] * 6
    by_id = [{"regions": "a.jpg", "caption": name} for name in NAMES]
    batch = collator(["itm"], store={"a.jpg": regions(3)}, seed=0)(by_id)
    assert batch["itm_labels"].tolist() == [1] * 6


def tag_words(ids):
    _, told, tags = text(ids).replace("[CLS] ", "").replace("[SEP]", "|").join("||").split("|")[:3]
    return told.strip(), tags.strip()


def test_tags_of_another_row_stand_behind_half_of_the_texts():
    seen = set()
    for seed in range(20):
        batch = seeded(["tags"], seed, max_tags=5)
        assert batch["tag_labels"].sum() == 3
        for row, found in enumerate(rows()):
            told, tags = tag_words(batch["tag_input_ids"][row])
            own = " ".join(found["regions"]["tags"])
            assert told == NAMES[row].replace("cats", "cat ##s")
            assert (tags == own) == (batch["tag_labels"][row] == 0)
            seen.add(tags)
    assert seen == {"dog cat", "dog cat red", "dog cat red blue", "dog cat red blue a"}


def test_with_three_classes_a_quarter_has_other_tags_and_a_quarter_another_text():
    for seed in range(20):
        batch = seeded(["tags"], seed, rows(NAMES[:4]), max_tags=5, num_tag_classes=3)
        assert batch["tag_labels"].sort().values.tolist() == [0, 0, 1, 2]
        for row, found in enumerate(rows(NAMES[:4])):
            told, tags = tag_words(batch["tag_input_ids"][row])
            label = int(batch["tag_labels"][row])
            assert (tags == " ".join(found["regions"]["tags"])) == (label != 1)
            assert (told == NAMES[row].replace("cats", "cat ##s")) == (label != 2)


def test_a_text_that_replaces_another_is_never_true_of_the_picture():
    captions, seen = [["a red dog", "a dog"], ["a dog"], ["a cat"]], set()
    for seed in range(60):
        batch = seeded(["tags"], seed, rows(captions), max_tags=5, num_tag_classes=3)
        for row in (batch["tag_labels"] == 2).nonzero().flatten().tolist():
            told, _ = tag_words(batch["tag_input_ids"][row])
            assert told not in captions[row]
            seen.add((row, told))
    assert {(0, "a cat"), (1, "a red dog"), (2, "a dog"), (2, "a red dog")} <= seen


def test_segments_of_replaced_tags_are_marked():
    batch = seeded(["tags"], max_tags=5)
    tags = batch["tag_token_type_ids"].sum(1) - 1  # the end of the second segment belongs to it
    assert tags.tolist() == [len(tag_words(ids)[1].split()) for ids in batch["tag_input_ids"]]


def test_questions_have_answers_and_captions_none():
    assert seeded(["answer"])["answer_labels"].tolist() == [-100, 0, 1, -100, 0, 1]
    wrong = rows()
    wrong[2]["answer"] = "maybe"
    with pytest.raises(
        ValueError, match="Row 2 of the batch has 'maybe' in 'answer', which is not among the 2"
    ):
        seeded(["answer"], of=wrong)


@pytest.mark.parametrize("max_tags", [0, 2])
def test_captions_are_written_to_their_end_and_tags_are_not(max_tags):
    batch = seeded(["caption"], max_tags=max_tags)
    for row, name in enumerate(NAMES):
        labels = batch["caption_labels"][row]
        assert labels[0] == -100
        assert text(labels.clamp(min=0)) == name.replace("cats", "cat ##s") + " [SEP]"
    written = batch["caption_labels"] != -100
    assert torch.equal(batch["caption_labels"][written], batch["input_ids"][written])


def test_one_task_is_drawn_for_each_batch_by_its_rate():
    collate = collator([*UNITER, "wra"], schedule="draw", rates=UNITER)
    torch.manual_seed(0)
    counts = dict.fromkeys(UNITER, 0)
    for _ in range(600):
        counts[collate._draw_tasks(None)[0]] += 1
    assert all(abs(counts[task] - 100 * rate) < 45 for task, rate in UNITER.items())
    evenly = collator(UNITER, schedule="draw")
    drawn = [evenly._draw_tasks(None)[0] for _ in range(400)]
    assert all(abs(drawn.count(task) - 100) < 35 for task in UNITER)


def test_a_drawn_task_has_its_own_columns_alone_and_alignment_comes_with_matching():
    columns = {
        "mlm": {"mlm_input_ids", "mlm_labels"},
        "itm": {"itm_region_index", "itm_labels"},
        "mrfr": {"masked_regions"},
        "mrc_kl": {"masked_regions", "region_class_scores"},
    }
    seen = set()
    for seed in range(40):
        batch = seeded([*UNITER, "wra"], seed, schedule="draw", rates=UNITER)
        task = batch["tasks"][0]
        assert batch["tasks"] == (["itm", "wra"] if task == "itm" else [task])
        assert set(batch) - set(BASE) == {*columns[task], "tasks"}
        seen.add(task)
    assert seen == set(UNITER)


def test_a_batch_is_drawn_the_same_again_whatever_was_drawn_between():
    """So a resumed run repeats what it would have seen."""
    options = {"schedule": "draw", "rates": UNITER}
    first = seeded(UNITER, 4, **options)
    collate = collator(UNITER, seed=4, **options)
    collate(rows(NAMES[::-1]))
    state = torch.get_rng_state()
    again = collate(rows())
    assert torch.equal(torch.get_rng_state(), state)
    assert set(first) == set(again)
    assert all(
        first[name] == again[name] if name == "tasks" else torch.equal(first[name], again[name])
        for name in first
    )
    other = [seeded(UNITER, seed, **options)["tasks"] for seed in range(5, 15)]
    assert any(tasks != first["tasks"] for tasks in other)


def test_torchs_own_generator_is_used_without_a_seed():
    collate, drawn = collator(["mlm"]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(collate(rows())["mlm_input_ids"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_items_are_what_each_loss_is_a_mean_over():
    batch = seeded(ALL, max_tags=2)
    items = {task: int(count) for task, count in pretraining_items(batch).items()}
    hidden = int(batch["masked_regions"].sum())
    asked = (batch["answer_labels"] != -100) & (batch["itm_labels"] == 1)
    assert items == {
        "mlm": int((batch["mlm_labels"] != -100).sum()),
        **dict.fromkeys(["mrfr", "smooth", "mrc", "mrc_kl", "object", "attribute"], hidden),
        **dict.fromkeys(["itm", "wra", "tags"], 6),
        "answer": int(asked.sum()),
        "caption": int((batch["caption_labels"] != -100).sum()),
    }
    assert 0 < items["answer"] < 4


def test_all_batches_of_a_collator_count_the_same_tasks():
    collate = collator([*UNITER, "wra"], schedule="draw", rates=UNITER, seed=0)
    batch = collate(rows())
    counted = collate.count_items(batch)
    assert set(counted) == {*UNITER, "wra"}
    assert {task for task, count in counted.items() if count} == set(batch["tasks"])


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["mlm", "mpp"], {}, r"`tasks`=\['mlm', 'mpp'\] must be some of .*; \['mpp'\] are none"),
        ([], {}, r"`tasks`=\[\] must be some of"),
        (["mlm", "wra"], {}, '`tasks` has "wra", which is done on the pairs of "itm"'),
        (["tags"], {}, '`tasks` has "tags" and the processor reads none, `max_tags`=0'),
        (["mlm"], {"schedule": "weigh"}, "`schedule`='weigh' must be 'sum' of all tasks or 'draw' one"),
        (["mlm"], {"word_share": 0}, "`word_share`=0 must be between 0 and 1; leave a task out by `tasks`"),
        (["mlm"], {"tag_share": 1.0}, "`tag_share`=1.0 must be between 0 and 1"),
        (["mlm"], {"num_tag_classes": 4}, "`num_tag_classes`=4 must be 2 or 3"),
        (
            ["mlm", "itm"],
            {"schedule": "draw", "rates": {"mlm": 1.0}},
            r"`rates`=\{'mlm': 1.0\} must have a positive number for each of the tasks \['mlm', 'itm'\]",
        ),
        (
            ["mlm"],
            {"schedule": "draw", "rates": {"mlm": 0.0}},
            r"`rates`=\{'mlm': 0.0\} must have a positive",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(tasks, options, message):
    with pytest.raises(ValueError, match=message):
        collator(tasks, **options)


def test_what_a_task_needs_is_named():
    with pytest.raises(ValueError, match='`tasks` has "answer", which needs `label2id`'):
        RegionPretrainingCollator(processor_of(), ["answer"])
    maskless = tokenizer()
    maskless.mask_token = None
    with pytest.raises(ValueError, match='no `mask_token` to hide words with; add one, or leave "mlm" out'):
        RegionPretrainingCollator(MMRegionProcessor(maskless), ["mlm"])
    bare = [{"boxes": regions(2)["boxes"], "features": torch.zeros(2, WIDTH)}]
    one = [{"regions": found, "caption": "a dog"} for found in (regions(2), *bare)]
    needs = {"mrc": "class_scores", "mrc_kl": "class_scores", "object": "labels", "attribute": "attributes"}
    for task, name in needs.items():
        message = rf"Row 1 .* regions without `{name}`, only \['boxes', 'features'\]; The task '{task}' needs"
        with pytest.raises(ValueError, match=message):
            seeded([task], of=one)
    with pytest.raises(ValueError, match="`regions` 1 has no `tags`, which the model reads"):
        seeded(["tags"], of=one, max_tags=2)
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has `labels` \(3,\) of torch.int64 for 2 regions"
    ):
        seeded(["object"], of=[{"regions": regions(2, labels=torch.zeros(3).long()), "caption": "a"}])
    with pytest.raises(ValueError, match=r"Row 0 of the batch has no \['caption'\], only \['regions'\]"):
        seeded(["mlm"], of=[{"regions": regions(2)}])
