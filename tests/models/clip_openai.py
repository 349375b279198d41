"""CLIP in OpenAI's layout without any of our code: transformers' weights in it, and its forward pass."""

import torch
from torch.nn import functional as F
from transformers import CLIPModel

# transformers' name: OpenAI's, inside a tower
BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def openai_weights(model: CLIPModel) -> dict:
    """The weights of transformers' model as OpenAI's file holds them."""
    text, vision = model.text_model, model.vision_model
    weights = {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.ln_pre.weight": vision.pre_layrnorm.weight,
        "visual.ln_pre.bias": vision.pre_layrnorm.bias,
        "visual.ln_post.weight": vision.post_layernorm.weight,
        "visual.ln_post.bias": vision.post_layernorm.bias,
        "visual.proj": model.visual_projection.weight.T,
    }
    for begin, tower in (("transformer", text), ("visual.transformer", vision)):
        for number, layer in enumerate(tower.encoder.layers):
            theirs, block = layer.state_dict(), f"{begin}.resblocks.{number}"
            for kind in ("weight", "bias"):
                qkv = [theirs[f"self_attn.{part}_proj.{kind}"] for part in "qkv"]
                weights[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
                weights |= {f"{block}.{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in BLOCK.items()}
    return {name: weight.detach().clone() for name, weight in weights.items()}


def encode(states, weights, begin, heads, act, mask=None):
    """(L, B, D) states through the blocks whose names start with `begin`."""
    depth = sum(name.startswith(begin) and name.endswith(".ln_1.weight") for name in weights)
    for number in range(depth):
        own = {name.removeprefix(f"{begin}.{number}."): weight for name, weight in weights.items()}
        normed = F.layer_norm(states, states.shape[-1:], own["ln_1.weight"], own["ln_1.bias"])
        mixed, _ = F.multi_head_attention_forward(
            normed, normed, normed, states.shape[-1], heads,
            own["attn.in_proj_weight"], own["attn.in_proj_bias"], None, None, False, 0.0,
            own["attn.out_proj.weight"], own["attn.out_proj.bias"], need_weights=False, attn_mask=mask,
        )  # fmt: skip
        states = states + mixed
        normed = F.layer_norm(states, states.shape[-1:], own["ln_2.weight"], own["ln_2.bias"])
        hidden = F.linear(normed, own["mlp.c_fc.weight"], own["mlp.c_fc.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden) if act == "quick_gelu" else F.gelu(hidden)
        states = states + F.linear(hidden, own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
    return states


def openai_logits(weights, pixels, ids, heads=(2, 1), act="quick_gelu"):
    """(B, C, Y, X) pixels and (N, L) ids to (B, N) logits, as the paper's figure 3 has it.

    `heads` of image and text tower; the text is read at its highest id.
    """
    kernel = weights["visual.conv1.weight"]
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).mT  # (B, N, D)
    first = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    states = torch.cat((first, patches), dim=1) + weights["visual.positional_embedding"]
    width = states.shape[-1:]
    states = F.layer_norm(states, width, weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    states = encode(states.transpose(0, 1), weights, "visual.transformer.resblocks", heads[0], act)[0]
    states = F.layer_norm(states, width, weights["visual.ln_post.weight"], weights["visual.ln_post.bias"])
    image = states @ weights["visual.proj"]

    length = ids.shape[1]
    states = weights["token_embedding.weight"][ids] + weights["positional_embedding"][:length]
    mask = torch.full((length, length), float("-inf")).triu(1)
    states = encode(states.transpose(0, 1), weights, "transformer.resblocks", heads[1], act, mask)
    states = F.layer_norm(states, states.shape[-1:], weights["ln_final.weight"], weights["ln_final.bias"])
    text = states[ids.argmax(dim=-1), torch.arange(len(ids))] @ weights["text_projection"]
    cosine = (image / image.norm(dim=-1, keepdim=True)) @ (text / text.norm(dim=-1, keepdim=True)).T
    return weights["logit_scale"].exp() * cosine
