"""Questions, captions and LLaVA's JSON become canonical rows; a faulty row is named by its number."""

import io
import json

import pytest
from chat_tiny import picture
from datasets import Dataset, DatasetDict, Features, Image, Value

from hf_mm import group_by_image, load_rows
from hf_mm.data.chat import question_rows, turns_of
from hf_mm.data.sources import llava_rows


def asked(number, question="red?", answer="no"):
    return {"image": f"{number}.png", "question": question, "answer": answer}


def png(seed=0):
    stream = io.BytesIO()
    picture(seed).save(stream, format="png")
    return stream.getvalue()


# ---- questions


def test_questions_about_one_image_become_one_row():
    rows = group_by_image([asked(1), asked(2), asked(1, "blue?", "yes")])
    assert [row["images"] for row in rows] == [["1.png"], ["2.png"]]
    assert rows[0]["conversations"] == [turns_of("red?", "no"), turns_of("blue?", "yes")]


def test_a_key_column_tells_images_apart():
    rows = [asked(number, f"{number}?") | {"id": number // 2} for number in range(4)]
    assert [len(row["conversations"]) for row in group_by_image(rows, key="id")] == [2, 2]
    with pytest.raises(ValueError, match=r"no column 'no'; there are \['answer'"):
        group_by_image(rows, key="no")


def test_images_of_a_data_set_stay_bytes_and_equal_bytes_are_one_image():
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    images = [{"bytes": png(seed), "path": None} for seed in (0, 1, 0)]
    columns = {"image": images, "question": ["a", "b", "c"], "answer": ["d", "e", "f"]}
    rows = group_by_image(Dataset.from_dict(columns, features=features))
    assert [row["images"] for row in rows] == [[images[0]], [images[1]]]
    assert list(question_rows(Dataset.from_dict(columns, features=features).to_iterable_dataset()))[2][
        "images"
    ] == [images[0]]


def test_of_several_answers_the_most_frequent_is_learnt():
    rows = [
        asked(0, answer=["no", "yes", "yes"]),
        asked(1, answer=[{"answer": "red"}, {"answer": "blue"}, {"answer": "red"}]),
        asked(2, answer={"answer": ["a", "b", "b"], "answer_id": [1, 2, 3]}),
        asked(3, answer=7),
    ]
    said = [row["conversations"][0][1]["content"] for row in group_by_image(rows)]
    assert said == ["yes", "red", "b", "7"]


def test_captions_need_no_question_and_rows_no_image():
    (row,) = question_rows([{"image": "a.png", "caption": "a cat"}], question=None, answer="caption")
    assert row["conversations"] == [
        [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a cat"}]
    ]
    (row,) = question_rows([asked(0) | {"image": None}])
    assert row["images"] == []
    assert row["conversations"][0][0]["content"] == [{"type": "text", "text": "red?"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "The data set is empty"),
        (
            [asked(0), {"image": "a", "question": "b"}],
            r"Row 1 has no column 'answer'; its columns are \['image', 'question'\]",
        ),
        ([asked(0), asked(1, answer="  ")], "Row 1 has no answer in 'answer': '  '"),
        ([asked(0), asked(1, answer=None)], "Row 1 has no answer in 'answer': None"),
        ([asked(0), asked(1, answer=[])], "Row 1 has no answer"),
        ([asked(0), asked(1, question=None)], "Row 1 has no question in 'question': None"),
    ],
)
def test_faulty_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        group_by_image(rows)


# ---- sources


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_files_are_read_by_their_ending(tmp_path, suffix):
    data = Dataset.from_list([asked(0), asked(1)])
    path = tmp_path / f"rows.{suffix}"
    getattr(data, f"to_{suffix}")(path)
    assert load_rows(path) == group_by_image(data)


def test_folders_are_read_as_they_were_saved(tmp_path):
    data = Dataset.from_list([asked(0), asked(1)])
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data.select([0]), test=data.select([1])).save_to_disk(tmp_path / "two")
    (tmp_path / "three").mkdir()
    picture().save(tmp_path / "three" / "a.png")
    line = {"file_name": "a.png", "question": "red?", "answer": "no"}
    (tmp_path / "three" / "metadata.jsonl").write_text(json.dumps(line))
    assert load_rows(tmp_path / "one") == group_by_image(data)
    assert load_rows(tmp_path / "two", split="test")[0]["images"] == ["1.png"]
    assert load_rows(tmp_path / "three")[0]["images"][0]["path"].endswith("a.png")
    with pytest.raises(ValueError, match=r"no split 'dev'; there are \['test', 'train'\]"):
        load_rows(tmp_path / "two", split="dev")


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.parquet"):
        load_rows(tmp_path / "gone.parquet")
    with pytest.raises(ValueError, match="is empty: there is no row to learn from"):
        load_rows(tmp_path)


# ---- LLaVA


def llava(folder, *turns, image="a.png", **fields):
    picture().save(folder / "a.png")
    entry = {"id": "x7", "conversations": [{"from": who, "value": text} for who, text in turns], **fields}
    entry |= {} if image is None else {"image": image}
    path = folder / "chats.json"
    path.write_text(json.dumps([entry]))
    return path


def test_llavas_json_is_read_as_chats_with_images_in_place(tmp_path):
    path = llava(
        tmp_path, ("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes.")
    )
    expected = {
        "images": [str(tmp_path / "a.png")],
        "conversations": [
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
                {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            ]
        ],
    }
    assert list(llava_rows(path)) == load_rows(path) == load_rows(tmp_path) == [expected]


def test_llavas_rows_may_have_no_image_several_and_a_system_turn(tmp_path):
    turns = [("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi")]
    (row,) = llava_rows(llava(tmp_path, *turns, image=None))
    assert row["images"] == []
    assert [turn["role"] for turn in row["conversations"][0]] == ["system", "user", "assistant"]
    turns = [("human", "Is <image> like <image>?"), ("gpt", "No")]
    (row,) = llava_rows(llava(tmp_path, *turns, image=["a.png", "a.png"]))
    assert [part["type"] for part in row["conversations"][0][0]["content"]] == [
        "text",
        "image",
        "text",
        "image",
        "text",
    ]


@pytest.mark.parametrize(
    ("turns", "fields", "message"),
    [
        ([("human", "<image>?"), ("gpt", " ")], {}, r"Row 0 \(id 'x7'\), turn 1 is an empty answer"),
        ([("human", "<image>?")], {}, r"Row 0 \(id 'x7'\) ends without an answer"),
        ([("gpt", "<image>"), ("human", "?")], {}, "turn 0 is the assistant's where the user's is due"),
        (
            [("human", "<image>"), ("human", "?"), ("gpt", "a")],
            {},
            "turn 1 is the user's where the assistant's is due",
        ),
        ([("human", "?"), ("gpt", "a")], {}, "has 0 '<image>' but 1 images"),
        ([("human", "<image>?"), ("gpt", "a")], {"image": None}, "has 1 '<image>' but 0 images"),
        ([("robot", "<image>?"), ("gpt", "a")], {}, 'turn 0 needs "from", one of'),
    ],
)
def test_llavas_faulty_rows_are_named(tmp_path, turns, fields, message):
    with pytest.raises(ValueError, match=message):
        list(llava_rows(llava(tmp_path, *turns, **fields)))


def test_llavas_missing_image_is_named(tmp_path):
    path = llava(tmp_path, ("human", "<image>?"), ("gpt", "a"), image="gone.png")
    with pytest.raises(
        FileNotFoundError, match=r"Row 0 \(id 'x7'\): there is no image .*gone\.png; set `image_folder`"
    ):
        load_rows(path)


def test_llavas_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="is empty or no list of entries"):
        list(llava_rows(tmp_path / "empty.json"))
