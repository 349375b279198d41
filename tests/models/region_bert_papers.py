"""The papers' layers in a few lines of PyTorch, on weights under the names of their authors' code.

Texts and regions without padding, in evaluation mode. `w` are weights by name, `t` text, `v` regions.
"""

import torch
from torch.nn.functional import gelu, layer_norm, linear


def dense(w, name, x):
    return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normed(w, name, x):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def attend(q, k, v, heads):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def attention(w, name, x, context, heads, own="self"):
    q, k, v = (
        dense(w, f"{name}.{own}.{part}", states)
        for part, states in (("query", x), ("key", context), ("value", context))
    )
    mixed = dense(w, f"{name}.output.dense", attend(q, k, v, heads))
    return normed(w, f"{name}.output.LayerNorm", mixed + x)


def mlp(w, name, x, first="intermediate", second="output"):
    y = dense(w, f"{name}.{second}.dense", gelu(dense(w, f"{name}.{first}.dense", x)))
    return normed(w, f"{name}.{second}.LayerNorm", y + x)


def bert_layer(w, name, x, heads):
    return mlp(w, name, attention(w, f"{name}.attention", x, x, heads))


def words(w, name, ids, types=None):
    types = torch.zeros_like(ids) if types is None else types
    x = w[f"{name}.word_embeddings.weight"][ids] + w[f"{name}.token_type_embeddings.weight"][types]
    return x + w[f"{name}.position_embeddings.weight"][: ids.shape[1]]


def corners(boxes):
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x1, y1, x2, y2, x2 - x1, y2 - y1


def uniter(w, ids, features, boxes, hidden, heads):
    x1, y1, x2, y2, width, height = corners(boxes)
    where = torch.stack((x1, y1, x2, y2, width, height, width * height), dim=-1)
    t = normed(w, "uniter.embeddings.LayerNorm", words(w, "uniter.embeddings", ids))
    name = "uniter.img_embeddings"
    seen = features.masked_fill(hidden.unsqueeze(2), 0.0) + w[f"{name}.mask_embedding.weight"][hidden.long()]
    v = normed(w, f"{name}.img_layer_norm", dense(w, f"{name}.img_linear", seen))
    v = v + normed(w, f"{name}.pos_layer_norm", dense(w, f"{name}.pos_linear", where))
    v = normed(w, f"{name}.LayerNorm", v + w["uniter.embeddings.token_type_embeddings.weight"][1])
    x = torch.cat((t, v), dim=1)
    for n in range(2):
        x = bert_layer(w, f"uniter.encoder.layer.{n}", x, heads)
    return x[:, : ids.shape[1]], x[:, ids.shape[1] :]


def whole_image_first(features, boxes):
    """The mean of the features, and the box of the image, before all others."""
    box = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(boxes), 1, 4)
    return torch.cat((features.mean(dim=1, keepdim=True), features), 1), torch.cat((box, boxes), 1)


def co_attention(w, name, v, t, heads):
    """Figure 2 of ViLBERT: each stream asks the other, then an MLP of each."""
    v1 = [dense(w, f"{name}.biattention.{part}1", v) for part in ("query", "key", "value")]
    t2 = [dense(w, f"{name}.biattention.{part}2", t) for part in ("query", "key", "value")]
    to_v = dense(w, f"{name}.biOutput.dense1", attend(v1[0], t2[1], t2[2], heads))
    to_t = dense(w, f"{name}.biOutput.dense2", attend(t2[0], v1[1], v1[2], heads))
    v = normed(w, f"{name}.biOutput.LayerNorm1", to_v + v)
    t = normed(w, f"{name}.biOutput.LayerNorm2", to_t + t)
    return (
        mlp(w, name, v, "v_intermediate", "v_output"),
        mlp(w, name, t, "t_intermediate", "t_output"),
    )


def vilbert(w, ids, features, boxes):
    features, boxes = whole_image_first(features, boxes)
    x1, y1, x2, y2, width, height = corners(boxes)
    where = torch.stack((x1, y1, x2, y2, width * height), dim=-1)
    t = normed(w, "bert.embeddings.LayerNorm", words(w, "bert.embeddings", ids))
    name = "bert.v_embeddings"
    v = dense(w, f"{name}.image_embeddings", features) + dense(w, f"{name}.image_location_embeddings", where)
    v = normed(w, f"{name}.LayerNorm", v)
    t = bert_layer(w, "bert.encoder.layer.0", t, 2)
    for n in range(2):
        v, t = co_attention(w, f"bert.encoder.c_layer.{n}", v, t, 3)
        v = bert_layer(w, f"bert.encoder.v_layer.{n}", v, 4)
        t = bert_layer(w, f"bert.encoder.layer.{n + 1}", t, 2)
    pooled = dense(w, "bert.t_pooler.dense", t[:, 0]).relu() * dense(w, "bert.v_pooler.dense", v[:, 0]).relu()
    return t, v, pooled


def sinusoids(boxes):
    """Sines and cosines of centre, width and height, of 256 frequencies each: appendix of VL-BERT."""
    x1, y1, x2, y2, width, height = corners(boxes)
    places = 100 * torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, width, height), dim=-1)
    angles = places.unsqueeze(-1) / 1000 ** (torch.arange(256) / 256)  # (B, R, 4, 256)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2)


def vl_bert(w, ids, features, boxes, hidden, heads):
    w = {name.removeprefix("module."): weight for name, weight in w.items()}
    hidden = torch.cat((torch.zeros_like(hidden[:, :1]), hidden), dim=1)
    visible = (~hidden[:, 1:]).unsqueeze(2).float()
    whole = (features * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)
    box = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(boxes), 1, 4)
    features, boxes = torch.cat((whole, features), 1), torch.cat((box, boxes), 1)
    masked = w["object_mask_visual_embedding.weight"][0]
    features = torch.where(hidden.unsqueeze(2), masked, features)
    both = torch.cat((sinusoids(boxes), features), dim=-1)
    regions = dense(w, "image_feature_extractor.obj_downsample.1", both).relu()
    t = words(w, "vlbert", ids) + normed(w, "vlbert.visual_ln_text", regions[:, :1])
    token = w["object_linguistic_embeddings.weight"][0]
    token = torch.where(hidden.unsqueeze(2), w["object_mask_word_embedding.weight"][0], token)
    v = normed(w, "vlbert.visual_ln_object", regions) + token
    end = w["vlbert.end_embedding.weight"].expand(len(ids), 1, -1)
    places = w["vlbert.position_embeddings.weight"]
    length = ids.shape[1]
    segment = w["vlbert.token_type_embeddings.weight"][2]
    x = torch.cat((t, v + places[length] + segment, end + places[length + 1] + segment), dim=1)
    x = normed(w, "vlbert.embedding_LayerNorm", x)
    for n in range(2):
        x = bert_layer(w, f"vlbert.encoder.layer.{n}", x, heads)
    return x[:, :length], x[:, length:-1]


def word_scores(w, name, states):
    x = normed(w, f"{name}.transform.LayerNorm", gelu(dense(w, f"{name}.transform.dense", states)))
    return linear(x, w[f"{name}.decoder.weight"], w[f"{name}.bias"])


def volta_attention(w, name, x, context, heads, mark="", other=""):
    """Of a stream whose names begin with `mark`, on one whose names begin with `other`."""
    q = dense(w, f"{name}.attention_self.{mark}query", x)
    k, v = (dense(w, f"{name}.attention_self.{other}{part}", context) for part in ("key", "value"))
    mixed = dense(w, f"{name}.attention_output.{mark}dense", attend(q, k, v, heads))
    return normed(w, f"{name}.attention_output.{mark}LayerNorm", mixed + x)


def volta_mlp(w, name, x, mark=""):
    y = dense(w, f"{name}.output.{mark}dense", gelu(dense(w, f"{name}.intermediate.{mark}dense", x)))
    return normed(w, f"{name}.output.{mark}LayerNorm", y + x)


def volta(w, config, ids, features, boxes):
    """The gated sublayers of VOLTA, section 3.2: which of four kinds of attention each of them has."""
    t = normed(w, "bert.embeddings.LayerNorm", words(w, "bert.embeddings", ids))
    if config["add_global_imgfeat"] == "first":
        features, boxes = whole_image_first(features, boxes)
    v = volta_regions(w, config, features, boxes)
    depth = 1 + max(config["t_ff_sublayers"])
    for n in range(depth):
        name = f"bert.encoder.layer.{n}"
        asks = {way for way in ("tt", "tv", "vt", "vv") if n in config[f"{way}_attn_sublayers"]}
        own = config["sublayer2num_attention_heads"].get(str(n))
        text_heads, region_heads = (
            own or config["num_attention_heads"],
            own or config["v_num_attention_heads"],
        )
        if len(asks) == 4:
            both = torch.cat((t, v), dim=1)
            both = volta_attention(w, name, both, both, text_heads)
            t, v = both[:, : t.shape[1]], both[:, t.shape[1] :]
        elif "tv" in asks:
            mark = "" if n in config["shared_sublayers"] else "v_"
            t, v = (
                volta_attention(w, name, t, v, text_heads, "", mark),
                volta_attention(w, name, v, t, region_heads, mark, ""),
            )
        else:
            t = volta_attention(w, name, t, t, text_heads) if "tt" in asks else t
            v = volta_attention(w, name, v, v, region_heads, "v_", "v_") if "vv" in asks else v
        t = volta_mlp(w, name, t) if n in config["t_ff_sublayers"] else t
        v = volta_mlp(w, name, v, "v_") if n in config["v_ff_sublayers"] else v
    pooled = dense(w, "bert.t_pooler.dense", t[:, 0]).relu()
    if config["fusion_method"] == "mul":
        pooled = pooled * dense(w, "bert.v_pooler.dense", v[:, 0]).relu()
    return t, v, pooled


def volta_regions(w, config, features, boxes):
    x1, y1, x2, y2, width, height = corners(boxes)
    where = torch.stack((x1, y1, x2, y2, width * height), dim=-1)[..., : config["num_locs"]]
    kind = config["image_embeddings"]
    if kind == "visualbert":
        name = "bert.embeddings"
        v = dense(w, f"{name}.projection", features) + w[f"{name}.token_type_embeddings_visual.weight"][1]
        return normed(w, f"{name}.LayerNorm", v + w[f"{name}.position_embeddings_visual.weight"][0])
    name = "bert.embeddings" if kind == "uniter" else "bert.v_embeddings"
    v = dense(w, f"{name}.image_embeddings", features)
    where = dense(w, f"{name}.image_location_embeddings", where)
    if kind == "vilbert":
        return normed(w, f"{name}.LayerNorm", v + where)
    if kind == "lxmert":
        return (normed(w, f"{name}.ImgLayerNorm", v) + normed(w, f"{name}.LocLayerNorm", where)) / 2
    v = normed(w, f"{name}.image_layer_norm", v) + normed(w, f"{name}.image_location_layer_norm", where)
    return normed(w, f"{name}.v_LayerNorm", v + w["bert.embeddings.token_type_embeddings.weight"][1])


def oscar(w, ids, features, boxes, heads):
    x1, y1, x2, y2, width, height = corners(boxes)
    both = torch.cat((features, torch.stack((x1, y1, x2, y2, width, height), dim=-1)), dim=-1)
    v = dense(w, "bert.img_embedding", both)
    v = normed(w, "bert.LayerNorm", v) if "bert.LayerNorm.weight" in w else v
    x = torch.cat((normed(w, "bert.embeddings.LayerNorm", words(w, "bert.embeddings", ids)), v), dim=1)
    for n in range(2):
        x = bert_layer(w, f"bert.encoder.layer.{n}", x, heads)
    return x[:, : ids.shape[1]], x[:, ids.shape[1] :]


def visualbert(w, ids, features, heads):
    """Regions are of the first segment of their own table there, at the first of their own positions."""
    name = "bert.bert.embeddings"
    v = dense(w, f"{name}.projection", features) + w[f"{name}.token_type_embeddings_visual.weight"][0]
    v = v + w[f"{name}.position_embeddings_visual.weight"][0]
    x = normed(w, f"{name}.LayerNorm", torch.cat((words(w, name, ids), v), dim=1))
    for n in range(2):
        x = bert_layer(w, f"bert.bert.encoder.layer.{n}", x, heads)
    return x[:, : ids.shape[1]], x[:, ids.shape[1] :]


def lxmert(w, ids, features, boxes, heads):
    w = {name.removeprefix("module."): weight for name, weight in w.items()}
    t = normed(w, "bert.embeddings.LayerNorm", words(w, "bert.embeddings", ids))
    name = "bert.encoder.visn_fc"
    v = normed(w, f"{name}.visn_layer_norm", dense(w, f"{name}.visn_fc", features))
    v = (v + normed(w, f"{name}.box_layer_norm", dense(w, f"{name}.box_fc", boxes))) / 2
    for n in range(2):
        t = bert_layer(w, f"bert.encoder.layer.{n}", t, heads)
    v = bert_layer(w, "bert.encoder.r_layers.0", v, heads)
    for n in range(2):
        name = f"bert.encoder.x_layers.{n}"
        t, v = (
            attention(w, f"{name}.visual_attention", t, v, heads, own="att"),
            attention(w, f"{name}.visual_attention", v, t, heads, own="att"),
        )
        t = attention(w, f"{name}.lang_self_att", t, t, heads)
        v = attention(w, f"{name}.visn_self_att", v, v, heads)
        t = mlp(w, name, t, "lang_inter", "lang_output")
        v = mlp(w, name, v, "visn_inter", "visn_output")
    return t, v
