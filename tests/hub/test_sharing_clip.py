"""Push and pull a CLIP model and its processor: the same scores for everyone."""

import pytest

TRUST = "trust_remote_code=True"

SCORES = """
classify = pipeline("zero-shot-image-classification", model="me/clip", trust_remote_code={})
rows = classify(picture, candidate_labels=["red dog", "cat"], hypothesis_template="a {{}}")
print(json.dumps({{row["label"]: row["score"] for row in rows}}))
"""


@pytest.fixture(scope="module")
def scores(member) -> dict:
    """A repository that a model and its processor were pushed to, and what the pipeline says there."""
    member.run("""
from hub.sharing_tiny import tiny_clip
for part in tiny_clip():
    part.push_to_hub("clip")
""")
    return member.value(SCORES.format(False))


def test_the_pipeline_says_the_same_to_a_stranger(stranger, scores):
    assert set(scores) == {"red dog", "cat"}
    assert stranger.value(SCORES.format(True)) == scores


def test_a_stranger_gets_the_processor_with_its_context(stranger, scores):
    stranger.run(f"""
processor = AutoProcessor.from_pretrained("me/clip", {TRUST})
assert type(processor).__module__.startswith("transformers_modules.")
assert type(processor.image_processor).__name__ == "MMCLIPImageProcessor"
rows = processor(images=[picture], text=["a cat", "a red dog " * 9])
assert rows["input_ids"].shape == (2, processor.max_length) == (2, 12)
assert processor.truncated_captions == 1
images = AutoImageProcessor.from_pretrained("me/clip", {TRUST})
assert torch.equal(images(picture)["pixel_values"], rows["pixel_values"])
""")


def test_the_processor_survives_a_stranger_saving_again(member, stranger, scores, tmp_path):
    stranger.run(f"AutoProcessor.from_pretrained('me/clip', {TRUST}).save_pretrained({str(tmp_path)!r})")
    member.run(f"""
processor = AutoProcessor.from_pretrained({str(tmp_path)!r})
assert type(processor) is hf_mm.MMCLIPProcessor
assert type(processor.image_processor) is hf_mm.MMCLIPImageProcessor
assert processor.max_length == 12
""")
