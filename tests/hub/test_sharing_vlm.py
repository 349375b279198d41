"""Push and pull vision-language models, adapters and training runs: the same tokens for everyone."""

from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
TRUST = "trust_remote_code=True"
ANSWER = "print(answer(*load({!r}, {})))"


@pytest.fixture(scope="module", params=[("mm_vit", 0), ("mm_vit", 2), ("clip_vision_model", 0)], ids=str)
def vlm(request, member) -> tuple[str, list]:
    """A repository that a model and its processor were pushed to, and the tokens of their answer."""
    tower, crops = request.param
    repo = f"me/vlm-{tower}-{crops}"
    tokens = member.value(f"""
model, processor = tiny_vlm({tower!r}, {crops})
model.push_to_hub({repo!r})
processor.push_to_hub({repo!r})
print(answer(model, processor))
""")
    return repo, tokens


@pytest.fixture(scope="module")
def small(member) -> list:
    """The tokens of me/small, for what need not be tried with every tower."""
    return member.value("""
model, processor = tiny_vlm("mm_vit", 1)
for part in (model, processor):
    part.push_to_hub("small")
print(answer(model, processor))
""")


def test_a_stranger_gets_the_same_answer(stranger, vlm):
    repo, tokens = vlm
    assert stranger.value(ANSWER.format(repo, TRUST)) == tokens


def test_every_auto_class_opens_what_was_pushed(stranger, vlm):
    repo, _ = vlm
    stranger.run(f"""
model, processor = load({repo!r}, {TRUST})
images = AutoImageProcessor.from_pretrained({repo!r}, {TRUST})
assert images.to_dict() == processor.image_processor.to_dict()
for part in (model, processor, images):
    assert type(part).__module__.startswith("transformers_modules."), type(part)
assert type(AutoConfig.from_pretrained({repo!r}, {TRUST})) is type(model.config)
assert AutoTokenizer.from_pretrained({repo!r}, {TRUST}).get_vocab() == processor.tokenizer.get_vocab()
""")


def test_a_member_needs_no_flag_for_the_same_answer(member, vlm):
    repo, tokens = vlm
    said = member.value(f"""
model, processor = load({repo!r})
for part in (model, processor, processor.image_processor, AutoImageProcessor.from_pretrained({repo!r})):
    assert type(part).__module__.startswith("hf_mm."), type(part)
print(answer(model, processor))
""")
    assert said == tokens


def test_the_answer_survives_a_stranger_saving_again(member, stranger, vlm, tmp_path):
    repo, tokens = vlm
    stranger.run(f"for part in load({repo!r}, {TRUST}): part.save_pretrained({str(tmp_path)!r})")
    assert stranger.value(ANSWER.format(str(tmp_path), TRUST)) == tokens
    assert member.value(ANSWER.format(str(tmp_path), "")) == tokens


def test_the_pipeline_says_the_same_to_everyone(member, stranger, vlm):
    repo, tokens = vlm
    run = """
speak = pipeline("image-text-to-text", model={!r}, trust_remote_code={})
options = dict(generate_kwargs=dict(max_new_tokens=8, do_sample=False), return_full_text=False)
print(json.dumps(speak(text=turns, **options)[0]["generated_text"]))
"""
    ours, theirs = member.value(run.format(repo, None)), stranger.value(run.format(repo, True))
    decode = f"AutoTokenizer.from_pretrained({repo!r}).decode({tokens[0]}, skip_special_tokens=True)"
    assert ours == theirs
    assert ours
    assert member.value(f"print(json.dumps({decode}))").endswith(ours)


def test_an_image_processor_can_travel_alone(member, stranger, small, tmp_path):
    member.run(f"load('me/small')[1].image_processor.save_pretrained({str(tmp_path)!r})")
    stranger.run(f"""
alone = AutoImageProcessor.from_pretrained({str(tmp_path)!r}, {TRUST})
both = AutoImageProcessor.from_pretrained("me/small", {TRUST})
assert torch.equal(alone(picture)["pixel_values"], both(picture)["pixel_values"])
""")


def test_a_tower_from_a_folder_of_its_own_travels_inside(member, stranger, tmp_path):
    """Its config names the generated file of that folder, which is not in this repository."""
    tokens = member.value(f"""
tiny_vit().vit.save_pretrained({str(tmp_path / "tower")!r})
model, processor = tiny_vlm()
model.config.vision_config = AutoConfig.from_pretrained({str(tmp_path / "tower")!r})
assert "hf_mm_vit" in str(model.config.vision_config.auto_map)
for part in (model, processor):
    part.save_pretrained({str(tmp_path / "whole")!r})
print(answer(model, processor))
""")
    assert "hf_mm_vit" not in (tmp_path / "whole" / "config.json").read_text()
    assert stranger.value(ANSWER.format(str(tmp_path / "whole"), TRUST)) == tokens


ADAPT = """
torch.manual_seed(0)
base, processor = load("me/small")
lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
model = peft.get_peft_model(base, lora)
"""


def test_an_adapter_brings_its_base_along(hub, member, stranger, small):
    tokens = member.value(f"{ADAPT}model.push_to_hub('small-lora')\nprint(answer(model, processor))")
    files = set(hub.repositories["me/small-lora"].files())
    assert files >= {"adapter_config.json", "adapter_model.safetensors"}
    pull = """
model = AutoModelForImageTextToText.from_pretrained("me/small-lora", {0})
print(answer(model, AutoProcessor.from_pretrained("me/small", {0})))
"""
    assert stranger.value(pull.format(TRUST)) == member.value(pull.format("")) == tokens != small


def test_a_merged_adapter_is_a_model_like_any_other(member, stranger, small):
    tokens = member.value(f"""{ADAPT}
model = model.merge_and_unload()
for part in (model, processor):
    part.push_to_hub("small-merged")
print(answer(model, processor))
""")
    assert stranger.value(ANSWER.format("me/small-merged", TRUST)) == tokens != small


def test_a_training_run_is_pushed_whole(hub, member, stranger, tmp_path):
    tokens = member.value(f"""
model, processor = tiny_vlm()
inputs = processor.apply_chat_template([turns], tokenize=True, return_dict=True, return_tensors="pt")
labels = inputs["input_ids"].where(inputs["input_ids"] != processor.image_token_id, -100)
row = dict(input_ids=inputs["input_ids"], labels=labels, pixel_values=inputs["pixel_values"])

def collate(rows):
    return {{name: torch.cat([row[name] for row in rows]) for name in rows[0]}}

args = TrainingArguments(
    {str(tmp_path / "run")!r}, max_steps=2, save_steps=1, learning_rate=0.01, push_to_hub=True,
    hub_model_id="me/trained", remove_unused_columns=False, disable_tqdm=True, use_cpu=True,
)
trainer = Trainer(model, args, collate, [row] * 8, processing_class=processor)
trainer.train()
trainer.push_to_hub()
print(answer(model, processor))
""")
    files = set(hub.repositories["me/trained"].files())
    assert files >= {"README.md", "config.json", "hf_mm_vlm.py", "model.safetensors", "processor_config.json"}
    assert stranger.value(ANSWER.format("me/trained", TRUST)) == tokens
    assert stranger.value(ANSWER.format(str(tmp_path / "run" / "checkpoint-2"), TRUST)) == tokens


def test_one_process_may_load_several_repositories(member, stranger, small, vlm):
    repo, tokens = vlm
    member.run("tiny_vit().push_to_hub('small-vit')")
    said = stranger.value(f"""
tiny = AutoModelForImageClassification.from_pretrained("me/small-vit", {TRUST})
answers = [answer(*load(repo, {TRUST})) for repo in ({repo!r}, "me/small", {repo!r})]
again = AutoModelForImageClassification.from_pretrained("me/small-vit", {TRUST})
assert classify(tiny) == classify(again)
print(json.dumps(answers))
""")
    assert said == [tokens, small, tokens]


def test_code_of_the_hub_never_replaces_the_installed_package(member, small):
    member.run("""
from transformers.dynamic_module_utils import get_class_from_dynamic_module

remote = get_class_from_dynamic_module("hf_mm_vlm.MMVLMConfig", "me/small")
assert remote.__module__.startswith("transformers_modules.")
for kind, cls in (("mm_vit", hf_mm.MMViTConfig), ("mm_vlm", hf_mm.MMVLMConfig)):
    assert type(AutoConfig.for_model(kind)) is cls
""")


def test_the_package_takes_over_when_it_is_imported_after_code_of_the_hub(stranger, small):
    said = stranger.value(f"""
answer(*load("me/small", {TRUST}))
sys.meta_path = [finder for finder in sys.meta_path if type(finder).__name__ != "Blocker"]
sys.path.insert(0, {str(SRC)!r})
import hf_mm
model, processor = load("me/small")
assert type(model) is hf_mm.MMVLMForConditionalGeneration
assert type(processor) is hf_mm.MMVLMProcessor
assert type(AutoConfig.for_model("mm_vit")) is hf_mm.MMViTConfig
print(answer(model, processor))
""")
    assert said == small
