"""A kernel with the signature of flash-attn's, for machines without one: rows of tokens, one by one.

transformers' own code in front of it is that of `flash_attention_2`, so what a layer hands over is what the
real kernel would get.
"""

import torch
from transformers import modeling_flash_attention_utils

KERNEL = "flash_attention_2"


def of_rows(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
):
    """(T, H, E) tokens of rows side by side, which begin and end at (B + 1,) int32 places."""
    assert {cu_seqlens_q.dtype, cu_seqlens_k.dtype} == {torch.int32}
    assert dropout_p == 0.0
    assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
    mixed = []
    ends = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    first_query, first_key = next(ends)
    for last_query, last_key in ends:
        query = q[first_query:last_query].transpose(0, 1)  # (H, Q, E)
        key, value = (part[first_key:last_key].transpose(0, 1) for part in (k, v))
        scores = query @ key.transpose(1, 2) * softmax_scale
        if causal:
            past = torch.ones(scores.shape[1:]).tril(scores.shape[2] - scores.shape[1]).bool()
            scores = scores.masked_fill(~past, -torch.inf)
        mixed.append((scores.softmax(dim=-1) @ value).transpose(0, 1))
        first_query, first_key = last_query, last_key
    return torch.cat(mixed)


def of_full_rows(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """(B, L, H, E) rows without padding."""
    ends = [torch.arange(len(part) + 1, dtype=torch.int32) * part.shape[1] for part in (q, k)]
    tokens = (part.flatten(0, 1) for part in (q, k, v))
    lengths = q.shape[1], k.shape[1]
    mixed = of_rows(*tokens, *ends, *lengths, dropout_p, softmax_scale, causal)
    return mixed.unflatten(0, q.shape[:2])


def install(monkeypatch):
    """Let transformers call these for `flash_attention_2`; returns a list of the calls for rows."""
    calls, utils = [], modeling_flash_attention_utils

    def noted(*tensors, **options):
        calls.append((tensors[0].shape, options))
        return of_rows(*tensors, **options)

    monkeypatch.setattr(utils, "_loaded_implementation", KERNEL)
    monkeypatch.setattr(utils, "_flash_fn", of_full_rows, raising=False)
    monkeypatch.setattr(utils, "_flash_varlen_fn", noted, raising=False)
    monkeypatch.setattr(utils, "_flash_with_kvcache_fn", None, raising=False)
    monkeypatch.setattr(utils, "_pad_fn", utils._pad_input, raising=False)
    monkeypatch.setattr(utils, "_unpad_fn", utils._unpad_input, raising=False)
    arguments = utils._lazy_define_process_function(of_rows)
    monkeypatch.setattr(utils, "_process_flash_kwargs_fn", arguments, raising=False)
    monkeypatch.setattr(utils, "_process_with_kvcache_kwargs_fn", dict, raising=False)
    return calls
