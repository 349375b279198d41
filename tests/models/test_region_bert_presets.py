"""The presets of the region BERTs: sizes and order of blocks of the papers, smaller ones of each, errors."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from region_bert_tiny import NAMES, mixed, scrambled, tiny_config
from torch.testing import assert_close
from transformers import LxmertConfig, LxmertModel, VisualBertConfig, VisualBertModel

from hf_mm.models.region_bert.configuration_region_bert import MMRegionBertConfig
from hf_mm.models.region_bert.modeling_region_bert import MMRegionBertModel


def on_paper(name, **changes):
    """A model of full size without memory for its weights."""
    with torch.device("meta"):
        return MMRegionBertModel(MMRegionBertConfig.preset(name, **changes))


def weights(model):
    return sum(weight.numel() for weight in model.parameters())


def linear(inputs, outputs):
    return inputs * outputs + outputs


def bert_block(width, inner):
    """Weights of a block of BERT: attention and MLP with their norms."""
    return 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width


BERT_BASE = 109_482_240  # with its pooler; Devlin et al. 2019 say 110 M


def test_lxmert_has_the_weights_of_the_published_model():
    with torch.device("meta"):
        peer = LxmertModel(LxmertConfig())
    model = on_paper("lxmert")
    assert weights(model) == weights(peer)
    counts = (len(peer.encoder.layer), len(peer.encoder.r_layers), len(peer.encoder.x_layers))
    assert model.config.layers == ["text"] * counts[0] + ["region"] * counts[1] + ["cross"] * counts[2]


def test_visualbert_has_the_weights_of_the_published_model():
    with torch.device("meta"):
        peer = VisualBertModel(VisualBertConfig(visual_embedding_dim=2048))
    assert weights(on_paper("visualbert")) == weights(peer)


def test_uniter_has_the_86_million_weights_of_the_paper():
    """Chen et al. 2020, section 3.1: "Total Parameters=86M" for UNITER-base, the words not counted."""
    model = on_paper("uniter")
    words = weights(model.embeddings)
    assert weights(model) - words == pytest.approx(86e6, rel=0.02)
    parts = linear(2048, 768) + linear(7, 768) + 3 * 2 * 768 + 2048
    assert weights(model) == BERT_BASE + (28996 - 30522) * 768 + parts


def test_oscar_is_bert_and_one_projection_of_2054_numbers():
    """Li et al. 2020, section 3: 2048 of the detector and six of the box."""
    assert weights(on_paper("oscar")) == BERT_BASE + linear(2054, 768)


def test_vl_bert_is_bert_and_one_projection_of_feature_and_geometry():
    """Su et al. 2020, section 3.2: 2048 numbers of either kind, a third segment; three vectors of words."""
    parts = linear(4096, 768) + 2 * 2 * 768 + 768 + 3 * 768 + 2048
    assert weights(on_paper("vl-bert")) == BERT_BASE + parts


def test_vilbert_has_the_sizes_of_its_paper():
    """Lu et al. 2019, section 3.1: BERT-base for text; regions 1024 wide, 8 heads; six of each in turn."""
    model = on_paper("vilbert")
    assert model.config.layers == ["text"] * 6 + ["co", "region", "text"] * 6
    regions = linear(2048, 1024) + linear(5, 1024) + 2 * 1024 + 6 * bert_block(1024, 1024)
    to_text = linear(768, 1024) + 2 * linear(1024, 1024) + linear(1024, 768)
    to_regions = linear(1024, 1024) + 2 * linear(768, 1024) + linear(1024, 1024)
    mlps = linear(768, 3072) + linear(3072, 768) + 2 * linear(1024, 1024)
    co = to_text + to_regions + mlps + 4 * (768 + 1024)
    poolers = linear(768, 1024) + linear(1024, 1024) - linear(768, 768)
    assert weights(model) == BERT_BASE + regions + 6 * co + poolers
    assert model.co_blocks[0].text_attention.head_dim == model.region_blocks[0].attention.head_dim == 128


@pytest.mark.parametrize("name", ["uniter", "oscar", "visualbert", "vl-bert"])
def test_one_stream_models_are_twelve_blocks_of_bert(name):
    model = on_paper(name)
    assert model.config.layers == ["joint"] * 12
    assert weights(model.joint_blocks) == 12 * bert_block(768, 3072)


@pytest.mark.parametrize(
    ("name", "depth", "layers"),
    [
        ("uniter", 3, ["joint"] * 3),
        ("lxmert", 4, ["text"] * 3 + ["region"] * 2 + ["cross"] * 2),
        ("lxmert", 1, ["text", "region", "cross"]),
        ("vilbert", 4, ["text"] * 2 + ["co", "region", "text"] * 2),
    ],
)
def test_smaller_models_keep_the_proportions(name, depth, layers):
    config = MMRegionBertConfig.preset(name, depth, hidden_size=64, num_attention_heads=4, pooler_size=32)
    assert config.layers == layers
    assert config.region_hidden_size == config.cross_hidden_size == 64
    assert config.region_num_attention_heads == config.cross_num_attention_heads == 4
    assert config.pooler_size == 32


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_comes_back_from_its_file(name, tmp_path):
    config = MMRegionBertConfig.preset(name, hidden_dropout=0.2)
    config.save_pretrained(tmp_path)
    assert MMRegionBertConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_blocks_of_one_group_are_one_block():
    """The same numbers as a model whose blocks hold copies of the same weights."""
    layers = ["text", "region", "text", "region", "cross", "cross"]
    shared = MMRegionBertModel(tiny_config("lxmert", layers=layers, layer_groups=[1, 1, 1, 1, 5, 6]))
    shared = scrambled(shared)
    assert (len(shared.text_blocks), len(shared.region_blocks), len(shared.cross_blocks)) == (1, 1, 2)
    apart = MMRegionBertModel(tiny_config("lxmert", layers=layers)).eval()
    state = shared.state_dict()
    for key in apart.state_dict():
        state[key] = state[key.replace("text_blocks.1", "text_blocks.0").replace("n_blocks.1", "n_blocks.0")]
    apart.load_state_dict(state)
    assert_close(apart(**mixed()).pooler_output, shared(**mixed()).pooler_output)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region_location": "box8"}, r"`region_location`='box8' must be one of \['none', 'box4'"),
        ({"layers": ["joint", "both"]}, r"`layers` names \['both'\]; the kinds of blocks are"),
        ({"layer_groups": [0, 1]}, "`layer_groups` has 2 numbers for 12 `layers`; give one for each"),
        ({"cross_num_attention_heads": 5}, "`cross_hidden_size`=768 must be a multiple of `cross_num_att"),
        (
            {"region_hidden_size": 1536, "region_type": None},
            r"`region_hidden_size`=1536 must be `hidden_size`=768: text and",
        ),
        (
            {"layers": ["cross"], "cross_hidden_size": 384},
            '`cross_hidden_size`=384 must be `hidden_size`=768 in "cross" blocks',
        ),
        ({"text_sees_image": True}, "`text_sees_image`=True needs `whole_image_region`=True"),
        (
            {"layers": ["co"], "region_hidden_size": 1536, "region_norm": "text"},
            r"where regions use the tables of text: \['region_norm', 'region_type_table'\]",
        ),
        ({"region_type": 2}, "`region_type`=2 is not below `type_vocab_size`=2"),
        ({"region_fusion": "concat", "region_location": "none"}, '`region_fusion`="concat" needs a location'),
        ({"region_projection_act": "relu"}, "`region_projection_act`='relu' stands behind the projection of"),
        ({"task_weights": {"mlm": 1.0, "mim": 1.0}}, r"`task_weights` names \['mim'\]; the tasks are"),
        ({"task_weights": {"wra": 0.1}}, 'has "wra" without "itm"'),
        ({"num_tag_classes": 4}, "`num_tag_classes`=4 must be 2 or 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(StrictDataclassError, match=words):
        MMRegionBertConfig(**changes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "vlbert"}, "`name`='vlbert' is no preset; there are"),
        ({"name": "oscar", "depth": 0}, "`depth`=0 must be at least 1"),
        ({"name": "oscar", "depth": 2, "layers": ["joint"]}, r"Give `depth`=2 or `layers`=\['joint'\], not"),
    ],
)
def test_presets_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MMRegionBertConfig.preset(**arguments)
