"""A text as the mean of its word vectors, whatever their order: the CBOW text tower of CLIP's pseudo-code.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3
(https://arxiv.org/abs/2103.00020); word vectors as in Mikolov et al. 2013, "Efficient Estimation of Word
Representations in Vector Space" (https://arxiv.org/abs/1301.3781).

Shapes: B texts, L places of the longest text, D width.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...hub.saving import AtomicSaveMixin
from .configuration_bag_of_words import MMBagOfWordsConfig

__all__ = ["MMBagOfWordsModel"]


class MMBagOfWordsModel(AtomicSaveMixin, PreTrainedModel):
    """Word vectors and their mean."""

    config_class = MMBagOfWordsConfig
    base_model_prefix = "bag_of_words"
    main_input_name = "input_ids"
    input_modalities = ["text"]

    def __init__(self, config: MMBagOfWordsConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode a batch of texts.

        Args:
            input_ids: (B, L) word ids.
            attention_mask: (B, L), 0 on padding; made from `pad_token_id` when absent.
            **kwargs: Taken for the sake of the Auto classes; there are no blocks to record.

        Returns:
            `last_hidden_state` (B, L, D), the vector of each word, zero at padding, and `pooler_output`
            (B, D), their mean: the zero vector for a text without words.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"`input_ids` must be (batch, length), got {tuple(input_ids.shape)}.")
        if attention_mask is None:
            pad = self.config.pad_token_id
            attention_mask = torch.ones_like(input_ids) if pad is None else input_ids != pad
        vectors = self.embeddings(input_ids)  # (B, L, D)
        vectors = vectors * attention_mask.to(vectors.dtype).unsqueeze(-1)
        count = attention_mask.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
        mean = (vectors.sum(dim=1, dtype=torch.float32) / count).to(vectors.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=vectors, pooler_output=mean)
