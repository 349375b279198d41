"""ViLT's pre-training: hidden words, matching pairs, words moved onto patches, colours of hidden patches.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", sections
3.2 and 4.5 (https://arxiv.org/abs/2102.03334).

Shapes: B rows, L places of a text, N most patches of an image, S = L + 1 + N, D width, C channels, Y x X
pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.batch_mean import IGNORED, labelled_cross_entropy
from ...objectives.masked_language import check_place_labels, masked_token_loss
from ...objectives.masked_patches import COLOUR_LEVELS, masked_colour_loss, patch_colour_classes
from ...objectives.matching import matching_loss
from ...objectives.optimal_transport import inner_tokens, word_patch_alignment_loss
from .configuration_vilt import MMViltConfig
from .heads_vilt import MMViltForImageAndTextRetrieval
from .inputs_vilt import mask_grids
from .layout_vilt import PatchGrids
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel, weights_but
from .own_patches_vilt import own_patches, real_patches
from .text_heads_vilt import ViltPredictionHead

__all__ = ["MMViltForPreTraining", "MMViltPreTrainingOutput", "start_ranking"]


@dataclass
class MMViltPreTrainingOutput(ModelOutput):
    """What `MMViltForPreTraining` returns.

    Attributes:
        loss: The sum of the losses that follow, weighted by `config.task_weights`.
        mlm_loss: Of hidden words, in nats.
        itm_loss: Of telling pairs that belong together from those that do not, in nats.
        wpa_loss: Of moving words onto patches, -2 to 2.
        mpp_loss: Of the colours of hidden patches, in nats.
        logits: (B, 2) of a mismatch and of a match, for the pairs of the matching task.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    wpa_loss: Tensor | None = None
    mpp_loss: Tensor | None = None
    logits: Tensor | None = None


class MMViltForPreTraining(MMViltPreTrainedModel):
    """The encoder with a head for each task that `config.task_weights` names.

    Tasks whose columns are in the batch are done, each different input in a pass of its own. Tasks have
    different numbers of items, so Trainer is not told to count them: it averages over accumulated batches.
    """

    accepts_loss_kwargs = False
    towers = {"encoder": ("vilt.",), "head": ("mlm_head.", "itm_head.", "mpp_head.")}
    _tied_weights_keys = {"mlm_head.decoder.weight": "vilt.embeddings.text.tokens.weight"}
    _keys_to_ignore_on_load_unexpected = weights_but(
        "mlm_head", "itm_head", "mpp_head", "pooler", "mask_token"
    )

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        tasks = config.task_weights
        self.vilt = MMViltModel(config, add_pooling_layer="itm" in tasks, use_mask_token="mpp" in tasks)
        colours = COLOUR_LEVELS * config.num_channels
        self.mlm_head = ViltPredictionHead(config, config.vocab_size) if "mlm" in tasks else None
        self.itm_head = nn.Linear(config.hidden_size, 2) if "itm" in tasks else None
        self.mpp_head = ViltPredictionHead(config, colours) if "mpp" in tasks else None
        if self.mlm_head is None:
            self._tied_weights_keys = {}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.mlm_head is None else self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        assert self.mlm_head is not None
        self.mlm_head.decoder = new_embeddings  # ty: ignore[invalid-assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        itm_image_index: Tensor | None = None,
        itm_labels: Tensor | None = None,
        bool_masked_patches: Tensor | None = None,
        num_items_by_task: Mapping[str, Tensor | int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMViltPreTrainingOutput:
        """The losses of the tasks whose columns are there; matching alone where there are none.

        Args:
            input_ids: (B, L) whole texts; see `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            mlm_input_ids: (B, L), the texts with words hidden.
            mlm_labels: (B, L), the words at hidden places, -100 at all others.
            itm_image_index: (B,), the image that each text is shown with; its own by default.
            itm_labels: (B,), 1 where that image belongs to the text, 0 where not, -100 where a pair does not
                count. Words are moved onto patches ("wpa") in the pairs that count.
            bool_masked_patches: (B, N), true where a patch of the image's own grid is hidden.
            num_items_by_task: By task, its items in the whole batch of which this is a part: hidden words
                ("mlm"), pairs ("itm", "wpa"), hidden patches ("mpp").

        Returns:
            `loss`, the loss of each task, and `logits` (B, 2).

        Raises:
            ValueError: A task's columns are not complete, or there is no head for it.
        """
        self._check_tasks(mlm_input_ids, mlm_labels, itm_image_index, itm_labels, bool_masked_patches)
        text: dict[str, Any] = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, **kwargs}
        image: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        items = dict(num_items_by_task or {})
        losses: dict[str, Tensor] = {}
        logits = None
        if mlm_labels is not None:
            states = self.vilt(mlm_input_ids, **text, **image).last_hidden_state[:, : input_ids.shape[1]]
            losses["mlm"] = self._word_loss(states, mlm_labels, items.get("mlm"))
        if itm_labels is not None or (mlm_labels is None and bool_masked_patches is None):
            logits, states = self._match(input_ids, itm_image_index, **text, **image)
            if itm_labels is not None:
                losses["itm"] = matching_loss(logits, itm_labels, items.get("itm"))
            if itm_labels is not None and "wpa" in self.config.task_weights:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                grids = self._grids(image, itm_image_index)
                losses["wpa"] = _alignment(states, mask, grids, itm_labels, items.get("wpa"))
        if bool_masked_patches is not None:
            hidden = {"bool_masked_patches": bool_masked_patches}
            states = self.vilt(input_ids, **text, **image, **hidden).last_hidden_state
            losses["mpp"] = self._colour_loss(states, bool_masked_patches, image, items.get("mpp"))
        return self._weighted(losses, logits)

    def _weighted(self, losses: dict[str, Tensor], logits: Tensor | None) -> MMViltPreTrainingOutput:
        weighted = [self.config.task_weights[task] * loss for task, loss in losses.items()]
        named: dict[str, Any] = {f"{task}_loss": loss for task, loss in losses.items()}
        loss = torch.stack(weighted).sum() if weighted else None
        return MMViltPreTrainingOutput(loss=loss, logits=logits, **named)

    def _match(self, input_ids: Tensor, image_index: Tensor | None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """(B, 2) logits of matching and (B, S, D) states."""
        if self.itm_head is None:
            raise ValueError(
                f'`task_weights`={self.config.task_weights} has no matching ("itm") and no columns of other '
                "tasks are given; give `mlm_labels` or `bool_masked_patches`."
            )
        seen = self.vilt(input_ids, image_index=image_index, **inputs)
        return self.itm_head(seen.pooler_output), seen.last_hidden_state

    def _word_loss(self, states: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        assert self.mlm_head is not None
        if not torch.compiler.is_compiling():
            return masked_token_loss(states, self.mlm_head, labels, items)
        check_place_labels(labels, states)
        return labelled_cross_entropy(self.mlm_head(states).flatten(0, 1), labels.flatten(), items)

    def _colour_loss(
        self, states: Tensor, hidden: Tensor, image: dict[str, Any], items: Tensor | int | None
    ) -> Tensor:
        assert self.mpp_head is not None
        config, grids, most = self.config, self._grids(image, None), hidden.shape[1]
        states = states[:, -most:]  # of the patches, behind text and [CLS]
        levels = patch_colour_classes(
            image["pixel_values"], config.patch_size, config.image_mean, config.image_std
        )
        levels = own_patches(levels, grids, most).masked_fill(~hidden.bool().unsqueeze(2), -100)  # (B, N, C)
        levels = levels.masked_fill(~real_patches(grids, most).unsqueeze(2), -100).flatten(0, 1)
        states = states.flatten(0, 1)  # (B * N, D)
        if not torch.compiler.is_compiling():
            counted = (levels[:, 0] != -100).nonzero().squeeze(1)
            states, levels = states[counted], levels[counted]
        return masked_colour_loss(self.mpp_head(states), levels, items)

    def _grids(self, image: dict[str, Any], image_index: Tensor | None) -> PatchGrids:
        grids = mask_grids(image["pixel_values"], image["pixel_mask"], self.config.patch_size)
        return grids if image_index is None else grids.of_rows(image_index)

    def _check_tasks(
        self,
        mlm_input_ids: Tensor | None,
        mlm_labels: Tensor | None,
        itm_image_index: Tensor | None,
        itm_labels: Tensor | None,
        bool_masked_patches: Tensor | None,
    ) -> None:
        if (mlm_input_ids is None) != (mlm_labels is None):
            raise ValueError("`mlm_input_ids` and `mlm_labels` go together; give both or neither.")
        if itm_image_index is not None and itm_labels is None:
            raise ValueError("`itm_image_index` needs `itm_labels`: 1 where that image belongs to the text.")
        given = {"mlm": mlm_labels, "itm": itm_labels, "mpp": bool_masked_patches}
        for task, column in given.items():
            if column is not None and task not in self.config.task_weights:
                raise ValueError(
                    f"The batch has columns of the task {task!r}, the model has no head for it "
                    f"(`task_weights`={self.config.task_weights}); name it there, or leave the columns out."
                )


def _alignment(
    states: Tensor, attention_mask: Tensor, grids: PatchGrids, labels: Tensor, items: Tensor | int | None
) -> Tensor:
    """The loss of moving words onto patches, of (B, S, D) states.

    Of an image with more patches than were drawn all N are real: see `max_patches` of the config.
    """
    length = attention_mask.shape[1]
    words, patches = states[:, :length], states[:, length + 1 :]
    real, counted = real_patches(grids, patches.shape[1]), labels != IGNORED
    inner = inner_tokens(attention_mask) & counted.unsqueeze(1)
    items = counted.sum() if items is None else items
    return word_patch_alignment_loss(words, patches, inner, real, labels == 1, num_items_in_batch=items)


@torch.no_grad()
def start_ranking(pretrained: MMViltForPreTraining) -> MMViltForImageAndTextRetrieval:
    """A model that ranks, of the encoder that was pre-trained; its head begins as that of a match.

    So ViLT does it before it learns retrieval: the score is the matching task's logit of "belong together".

    Args:
        pretrained: Has learnt matching.

    Raises:
        ValueError: It has not learnt matching.
    """
    if pretrained.itm_head is None:
        raise ValueError(
            f'`task_weights`={pretrained.config.task_weights} has no matching ("itm"), so there is no head '
            "to begin with; load the checkpoint with `MMViltForImageAndTextRetrieval.from_pretrained`."
        )
    model = MMViltForImageAndTextRetrieval(pretrained.config)
    encoder = {
        name: weight for name, weight in pretrained.vilt.state_dict().items() if "mask_token" not in name
    }
    model.vilt.load_state_dict(encoder)
    model.rank_output.weight.copy_(pretrained.itm_head.weight[1:])
    model.rank_output.bias.copy_(pretrained.itm_head.bias[1:])
    return model.to(device=pretrained.device, dtype=pretrained.dtype).train(pretrained.training)
