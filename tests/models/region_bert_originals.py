"""Folders such as the authors of the region BERTs released: their names and shapes, with numbers of our own.

Each function gives weights by name as the published code saves them, at small sizes. `D` is the width, `F`
that of a region's feature, `A` answers.
"""

import json

import torch

WORDS, PLACES, FEATURE, WIDTH, INNER, HEADS, DEPTH, CLASSES, ANSWERS = 40, 24, 20, 32, 48, 2, 2, 7, 5
BERT_JSON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": PLACES,
    "num_attention_heads": HEADS,
    "num_hidden_layers": DEPTH,
    "type_vocab_size": 2,
    "vocab_size": WORDS,
}


def filled(shapes, seed=0):
    """Weights of these shapes: around one for the scales of norms, around zero for all else."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(shape, generator=random) + _is_scale(name, shape)
        for name, shape in shapes.items()
    }


def _is_scale(name, shape):
    return 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0


def save(folder, weights, config=None, file="pytorch_model.bin", config_file="config.json", **beside):
    """Write weights, as they are or beside other things, and the config of their code."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, **beside} if beside else weights, folder / file)
    if config is not None:
        (folder / config_file).write_text(json.dumps(config))
    return folder


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, width=WIDTH):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def bert_words(name, types=2, width=WIDTH, norm_name="LayerNorm"):
    return {
        f"{name}.word_embeddings.weight": (WORDS, width),
        f"{name}.position_embeddings.weight": (PLACES, width),
        f"{name}.token_type_embeddings.weight": (types, width),
    } | norm(f"{name}.{norm_name}", width)


def bert_attention(name, width=WIDTH, own="self", out="output"):
    heads = [linear(f"{name}.{own}.{part}", width, width) for part in ("query", "key", "value")]
    return merged(*heads, linear(f"{name}.{out}.dense", width, width), norm(f"{name}.{out}.LayerNorm", width))


def bert_mlp(name, width=WIDTH, inner=INNER, first="intermediate", second="output"):
    return merged(
        linear(f"{name}.{first}.dense", inner, width),
        linear(f"{name}.{second}.dense", width, inner),
        norm(f"{name}.{second}.LayerNorm", width),
    )


def bert_layers(name, depth=DEPTH, width=WIDTH, inner=INNER):
    layers = (
        bert_attention(f"{name}.{n}.attention", width) | bert_mlp(f"{name}.{n}", width, inner)
        for n in range(depth)
    )
    return merged(*layers)


def bert_words_head(name, width=WIDTH):
    """What guesses a hidden word; the table is that of the words, saved a second time."""
    return merged(
        {f"{name}.bias": (WORDS,), f"{name}.decoder.weight": (WORDS, width)},
        linear(f"{name}.transform.dense", width, width),
        norm(f"{name}.transform.LayerNorm", width),
    )


def merged(*parts):
    return {name: shape for part in parts for name, shape in part.items()}


def tied(weights, head, words):
    """The same table under both names, as `state_dict` of tied modules gives it."""
    return weights | {head: weights[words]}


def uniter_base(prefix="uniter."):
    return merged(
        bert_words(f"{prefix}embeddings"),
        linear(f"{prefix}img_embeddings.img_linear", WIDTH, FEATURE),
        norm(f"{prefix}img_embeddings.img_layer_norm"),
        norm(f"{prefix}img_embeddings.pos_layer_norm"),
        linear(f"{prefix}img_embeddings.pos_linear", WIDTH, 7),
        {f"{prefix}img_embeddings.mask_embedding.weight": (2, FEATURE)},
        norm(f"{prefix}img_embeddings.LayerNorm"),
        bert_layers(f"{prefix}encoder.layer"),
        linear(f"{prefix}pooler.dense", WIDTH, WIDTH),
    )


def uniter_pretraining():
    shapes = merged(
        uniter_base(),
        bert_words_head("cls.predictions"),
        linear("feat_regress.net.0", WIDTH, WIDTH),
        norm("feat_regress.net.2"),
        {"feat_regress.weight": (WIDTH, FEATURE), "feat_regress.bias": (FEATURE,)},
        linear("region_classifier.net.0", WIDTH, WIDTH),
        norm("region_classifier.net.2"),
        linear("region_classifier.net.3", CLASSES, WIDTH),
        linear("itm_output", 2, WIDTH),
    )
    weights = filled(shapes, 1)
    weights["uniter.img_embeddings.mask_embedding.weight"][0] = 0  # the row of regions that are seen
    weights = tied(weights, "cls.predictions.decoder.weight", "uniter.embeddings.word_embeddings.weight")
    return tied(weights, "feat_regress.weight", "uniter.img_embeddings.img_linear.weight")


def vilbert_base(prefix="bert.", regions=40, inner=28, cross=24):
    """Text `WIDTH` wide, regions 40, co-attention 24; two layers before it in the text, as many beside it."""
    shapes = merged(
        bert_words(f"{prefix}embeddings"),
        linear(f"{prefix}v_embeddings.image_embeddings", regions, FEATURE),
        linear(f"{prefix}v_embeddings.image_location_embeddings", regions, 5),
        norm(f"{prefix}v_embeddings.LayerNorm", regions),
        bert_layers(f"{prefix}encoder.layer", depth=3),
        bert_layers(f"{prefix}encoder.v_layer", depth=2, width=regions, inner=inner),
        linear(f"{prefix}t_pooler.dense", cross, WIDTH),
        linear(f"{prefix}v_pooler.dense", cross, regions),
    )
    for n in range(2):
        layer = f"{prefix}encoder.c_layer.{n}"
        for side, width in (("1", regions), ("2", WIDTH)):
            shapes |= merged(
                *(linear(f"{layer}.biattention.{p}{side}", cross, width) for p in QUERY_KEY_VALUE)
            )
            shapes |= linear(f"{layer}.biOutput.dense{side}", width, cross)
            shapes |= norm(f"{layer}.biOutput.LayerNorm{side}", width)
            shapes |= linear(f"{layer}.biOutput.q_dense{side}", width, cross)  # made, and used by nothing
        shapes |= bert_mlp(layer, regions, inner, "v_intermediate", "v_output")
        shapes |= bert_mlp(layer, WIDTH, INNER, "t_intermediate", "t_output")
    return shapes


QUERY_KEY_VALUE = ("query", "key", "value")
VILBERT_JSON = BERT_JSON | {
    "num_hidden_layers": 3,
    "v_feature_size": FEATURE,
    "v_target_size": CLASSES,
    "v_hidden_size": 40,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 4,
    "v_intermediate_size": 28,
    "bi_hidden_size": 24,
    "bi_num_attention_heads": 3,
    "v_attention_probs_dropout_prob": 0.1,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_biattention_id": [0, 1],
    "t_biattention_id": [1, 2],
    "fusion_method": "mul",
}


def vilbert_pretraining(regions=40, cross=24):
    shapes = merged(
        vilbert_base(),
        bert_words_head("cls.predictions"),
        linear("cls.bi_seq_relationship", 2, cross),
        linear("cls.imagePredictions.transform.dense", regions, regions),
        norm("cls.imagePredictions.transform.LayerNorm", regions),
        linear("cls.imagePredictions.decoder", CLASSES, regions),
    )
    weights = filled(shapes, 2)
    return tied(weights, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")


def vl_bert_pretraining(feature=2048):
    """Saved by several GPUs, so that every name begins with `module.`; without a pooler, without matching."""
    shapes = merged(
        linear("image_feature_extractor.obj_downsample.1", WIDTH, 2 * feature),
        {
            "object_linguistic_embeddings.weight": (1, WIDTH),
            "object_mask_visual_embedding.weight": (1, feature),
            "object_mask_word_embedding.weight": (1, WIDTH),
            "aux_text_visual_embedding.weight": (1, WIDTH),
            "vlbert.end_embedding.weight": (1, WIDTH),
        },
        bert_words("vlbert", types=3, norm_name="embedding_LayerNorm"),
        norm("vlbert.visual_ln_text"),
        norm("vlbert.visual_ln_object"),
        bert_layers("vlbert.encoder.layer"),
        bert_words_head("vlbert.mlm_head.predictions"),
        linear("vlbert.mvrc_head.transform.dense", WIDTH, WIDTH),
        linear("vlbert.mvrc_head.region_cls_pred", CLASSES, WIDTH),
    )
    weights = filled(shapes, 3)
    weights["image_feature_extractor.obj_downsample.1.weight"] *= 0.1  # its input is wide
    words = "vlbert.word_embeddings.weight"
    weights = tied(weights, "vlbert.mlm_head.predictions.decoder.weight", words)
    return {f"module.{name}": weight for name, weight in weights.items()}


def oscar_base(prefix="bert."):
    return merged(
        bert_words(f"{prefix}embeddings"),
        bert_layers(f"{prefix}encoder.layer"),
        linear(f"{prefix}pooler.dense", WIDTH, WIDTH),
        linear(f"{prefix}img_embedding", WIDTH, FEATURE + 6),
    )


def oscar_pretraining(classes=2, img_norm=False):
    shapes = merged(
        oscar_base(),
        norm("bert.LayerNorm") if img_norm else {},
        bert_words_head("cls.predictions"),
        linear("cls.seq_relationship", classes, WIDTH),
    )
    weights = filled(shapes, 4)
    return tied(weights, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")


def lxmert_layers(name, text=2, region=1, cross=2):
    shapes = merged(bert_layers(f"{name}.layer", text), bert_layers(f"{name}.r_layers", region))
    for n in range(cross):
        layer = f"{name}.x_layers.{n}"
        shapes |= bert_attention(f"{layer}.visual_attention", own="att")
        shapes |= bert_attention(f"{layer}.lang_self_att") | bert_attention(f"{layer}.visn_self_att")
        shapes |= bert_mlp(layer, first="lang_inter", second="lang_output")
        shapes |= bert_mlp(layer, first="visn_inter", second="visn_output")
    return shapes


def lxmert_pretraining():
    shapes = merged(
        bert_words("bert.embeddings"),
        linear("bert.encoder.visn_fc.visn_fc", WIDTH, FEATURE),
        norm("bert.encoder.visn_fc.visn_layer_norm"),
        linear("bert.encoder.visn_fc.box_fc", WIDTH, 4),
        norm("bert.encoder.visn_fc.box_layer_norm"),
        lxmert_layers("bert.encoder"),
        linear("bert.pooler.dense", WIDTH, WIDTH),
        bert_words_head("cls.predictions"),
        linear("cls.seq_relationship", 2, WIDTH),
        linear("obj_predict_head.transform.dense", WIDTH, WIDTH),
        norm("obj_predict_head.transform.LayerNorm"),
        linear("obj_predict_head.decoder_dict.obj", CLASSES, WIDTH),
        linear("obj_predict_head.decoder_dict.attr", 4, WIDTH),
        linear("obj_predict_head.decoder_dict.feat", FEATURE, WIDTH),
        linear("answer_head.logit_fc.0", 2 * WIDTH, WIDTH),
        norm("answer_head.logit_fc.2", 2 * WIDTH),
        linear("answer_head.logit_fc.3", ANSWERS, 2 * WIDTH),
    )
    weights = filled(shapes, 5)
    weights = tied(weights, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    return {f"module.{name}": weight for name, weight in weights.items()}


def visualbert_pretraining():
    """Names as AllenNLP's model saves them: it holds the model as `bert`, and that its encoder as `bert`."""
    shapes = merged(
        bert_words("bert.bert.embeddings"),
        {
            "bert.bert.embeddings.token_type_embeddings_visual.weight": (2, WIDTH),
            "bert.bert.embeddings.position_embeddings_visual.weight": (PLACES, WIDTH),
        },
        linear("bert.bert.embeddings.projection", WIDTH, FEATURE),
        bert_layers("bert.bert.encoder.layer"),
        linear("bert.bert.pooler.dense", WIDTH, WIDTH),
        bert_words_head("bert.cls.predictions"),
        linear("bert.cls.seq_relationship", 2, WIDTH),
    )
    weights = filled(shapes, 6)
    words = "bert.bert.embeddings.word_embeddings.weight"
    return tied(weights, "bert.cls.predictions.decoder.weight", words)


VOLTA_JSON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": PLACES,
    "num_attention_heads": HEADS,
    "pooler_size": 24,
    "type_vocab_size": 2,
    "vocab_size": WORDS,
    "bert_model": "bert-base-uncased",
    "num_locs": 5,
    "add_global_imgfeat": "first",
    "v_attention_probs_dropout_prob": 0.1,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_feature_size": FEATURE,
    "visual_target_weights": {"0": 1.0},
    "v_hidden_size": WIDTH,
    "v_pooler_size": 24,
    "v_num_attention_heads": HEADS,
    "v_intermediate_size": INNER,
    "fusion_method": "mul",
    "shared_sublayers": [],
    "single_ln_sublayers": [],
    "sublayer2attn_hidden_size": {},
    "sublayer2num_attention_heads": {},
    "sublayer2intermediate_size": {},
    "sublayer2v_attn_hidden_size": {},
    "sublayer2v_num_attention_heads": {},
    "sublayer2v_intermediate_size": {},
}
ONE_STREAM = {f"{way}_attn_sublayers": [0, 2] for way in ("tt", "tv", "vt", "vv")} | {
    "t_ff_sublayers": [1, 3],
    "v_ff_sublayers": [1, 3],
    "shared_sublayers": [0, 1, 2, 3],
    "single_ln_sublayers": [0, 1, 2, 3],
}
VOLTA_JSONS = {
    "uniter": VOLTA_JSON | ONE_STREAM | {"image_embeddings": "uniter"},
    "visualbert": VOLTA_JSON | ONE_STREAM | {"image_embeddings": "visualbert", "fusion_method": "text"},
    # Text alone, co-attention, each alone; regions, heads and co-attention have sizes of their own.
    "vilbert": VOLTA_JSON
    | {
        "image_embeddings": "vilbert",
        "v_hidden_size": 40,
        "v_num_attention_heads": 4,
        "v_intermediate_size": 28,
        "tt_attn_sublayers": [0, 4],
        "vv_attn_sublayers": [4],
        "tv_attn_sublayers": [2],
        "vt_attn_sublayers": [2],
        "t_ff_sublayers": [1, 3, 5],
        "v_ff_sublayers": [3, 5],
        "sublayer2attn_hidden_size": {"2": 40},
        "sublayer2num_attention_heads": {"2": 4},
    },
    # Each alone, text alone, then attention both ways with shared weights, each alone, MLP.
    "lxmert": VOLTA_JSON
    | {
        "image_embeddings": "lxmert",
        "num_locs": 4,
        "add_global_imgfeat": None,
        "fusion_method": "text",
        "visual_target_weights": {"3": 6.667, "4": 6.667, "5": 6.667},
        "qa_task_weight": 1,
        "tt_attn_sublayers": [0, 2, 5],
        "vv_attn_sublayers": [0, 5],
        "tv_attn_sublayers": [4],
        "vt_attn_sublayers": [4],
        "t_ff_sublayers": [1, 3, 6],
        "v_ff_sublayers": [1, 6],
        "shared_sublayers": [4],
    },
}


def volta_sublayer(name, number, config):
    """One sublayer of a config, with the names that shared streams give a second time left out."""
    shared, text, regions = number in config["shared_sublayers"], WIDTH, config["v_hidden_size"]
    asks = {way for way in ("tt", "tv", "vt", "vv") if number in config[f"{way}_attn_sublayers"]}
    sides = {"t": ("", text), "v": ("v_", regions)}
    shapes = {}
    for side, (mark, width) in sides.items():
        if shared and side == "v":
            continue
        if any(way[0] == side for way in asks):
            inner = config["sublayer2attn_hidden_size"].get(str(number), width)
            parts = [linear(f"{name}.attention_self.{mark}{p}", inner, width) for p in QUERY_KEY_VALUE]
            shapes |= merged(*parts, linear(f"{name}.attention_output.{mark}dense", width, inner))
            shapes |= norm(f"{name}.attention_output.{mark}LayerNorm", width)
        if number in config[f"{side}_ff_sublayers"]:
            inner = config["v_intermediate_size" if mark else "intermediate_size"]
            shapes |= linear(f"{name}.intermediate.{mark}dense", inner, width)
            shapes |= linear(f"{name}.output.{mark}dense", width, inner)
            shapes |= norm(f"{name}.output.{mark}LayerNorm", width)
    return shapes


def volta_embeddings(config):
    kind, regions = config["image_embeddings"], config["v_hidden_size"]
    name = "bert.v_embeddings" if kind in ("vilbert", "lxmert") else "bert.embeddings"
    shapes = bert_words("bert.embeddings")
    if kind == "visualbert":
        tables = {"token_type_embeddings_visual": 2, "position_embeddings_visual": PLACES}
        shapes |= {f"{name}.{table}.weight": (rows, WIDTH) for table, rows in tables.items()}
        return shapes | linear(f"{name}.projection", WIDTH, FEATURE)
    shapes |= linear(f"{name}.image_embeddings", regions, FEATURE)
    shapes |= linear(f"{name}.image_location_embeddings", regions, config["num_locs"])
    norms = {
        "uniter": ("image_layer_norm", "image_location_layer_norm", "v_LayerNorm"),
        "vilbert": ("LayerNorm",),
        "lxmert": ("ImgLayerNorm", "LocLayerNorm"),
    }
    return merged(shapes, *(norm(f"{name}.{each}", regions) for each in norms[kind]))


def volta_pretraining(kind):
    """What VOLTA saves of a model; streams that share weights give them under two names."""
    config = VOLTA_JSONS[kind]
    regions, pooled = config["v_hidden_size"], config["pooler_size"]
    shapes, depth = volta_embeddings(config), 1 + max(config["t_ff_sublayers"])
    for number in range(depth):
        shapes |= volta_sublayer(f"bert.encoder.layer.{number}", number, config)
    shapes |= linear("bert.t_pooler.dense", pooled, WIDTH)
    if config["fusion_method"] == "mul":
        shapes |= linear("bert.v_pooler.dense", pooled, regions)
    shapes |= merged(bert_words_head("cls.predictions"), linear("cls.bi_seq_relationship", 2, pooled))
    shapes |= linear("cls.imagePredictions.transform.dense", regions, regions)
    shapes |= norm("cls.imagePredictions.transform.LayerNorm", regions)
    rows = {"0": CLASSES, "3": 6, "4": 3, "5": FEATURE}
    for each in config["visual_target_weights"]:
        shapes |= linear(f"cls.imagePredictions.decoder_dict.{each}", rows[each], regions)
    if "qa_task_weight" in config:
        shapes |= linear("cls.qaPredictions.logit_fc.0", 2 * pooled, pooled)
        shapes |= norm("cls.qaPredictions.logit_fc.2", 2 * pooled)
        shapes |= linear("cls.qaPredictions.logit_fc.3", ANSWERS, 2 * pooled)
    weights = filled(shapes, 7)
    weights = tied(weights, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    for number in config["shared_sublayers"]:
        own = [name for name in weights if name.startswith(f"bert.encoder.layer.{number}.")]
        for name in own:
            *front, part, last = name.split(".")
            weights[".".join([*front, f"v_{part}", last])] = weights[name]
    return weights
