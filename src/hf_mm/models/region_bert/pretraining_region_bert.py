"""Pre-training of the vision-language BERTs on regions: all tasks of all of them.

Hidden words, hidden regions and matching: Lu et al. 2019, "ViLBERT" (https://arxiv.org/abs/1908.02265).
Objects, attributes, answers: Tan and Bansal 2019, "LXMERT" (https://arxiv.org/abs/1908.07490). Words moved
onto regions: Chen et al. 2020, "UNITER" (https://arxiv.org/abs/1909.11740). Object tags: Li et al. 2020,
"Oscar" (https://arxiv.org/abs/2004.06165); in three classes: Zhang et al. 2021, "VinVL"
(https://arxiv.org/abs/2101.00529). Captions behind a prefix of regions: Zhou et al. 2020, "Unified
Vision-Language Pre-Training for Image Captioning and VQA" (https://arxiv.org/abs/1909.11059).

Shapes: B rows, L places of a text, R places for regions, F width of features, D width of text tokens, E
width of region tokens.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.classification import check_class_labels
from ...objectives.masked_language import check_place_labels, masked_token_loss
from ...objectives.matching import matching_loss
from ...objectives.optimal_transport import inner_tokens, word_patch_alignment_loss
from .columns_region_bert import RegionPretrainingColumns
from .configuration_region_bert import MMRegionBertConfig
from .heads_region_bert import MMRegionBertForImageAndTextRetrieval
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel, weights_beside
from .parts_region_bert import (
    RegionBertFeatureHead,
    RegionBertPredictionHead,
    region_bert_mlp,
)
from .pretraining_heads_region_bert import (
    REGION_TASKS,
    HiddenRegions,
    RegionBertDetectorHead,
    region_losses,
)
from .written_region_bert import next_words, prefix_of_labels

__all__ = ["MMRegionBertForPreTraining", "MMRegionBertPreTrainingOutput", "start_region_ranking"]

HEADS = (
    "mlm_head",
    "itm_head",
    "feature_head",
    "region_classifier",
    "detector_head",
    "tag_head",
    "answer_head",
)


@dataclass
class MMRegionBertPreTrainingOutput(ModelOutput):
    """What `MMRegionBertForPreTraining` returns; losses of classes and words are in nats.

    Attributes:
        loss: The sum of the losses that follow, weighted by `config.task_weights`.
        mlm_loss: Of hidden words.
        itm_loss: Of telling texts and regions that belong together from those that do not.
        wra_loss: Of moving words onto regions, -2 to 2.
        mrfr_loss: Squared error of the features of hidden regions.
        smooth_loss: Smooth absolute error of the same.
        mrc_loss: Of the classes of hidden regions.
        mrc_kl_loss: Of the detector's distribution over their classes.
        object_loss: Of the objects that they show.
        attribute_loss: Of their attributes.
        tags_loss: Of telling tags that are the image's own from others.
        answer_loss: Of the answers to questions.
        caption_loss: Of the words of captions, each from those before it.
        logits: (B, 2) of a mismatch and of a match, for the pairs of the matching task.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    wra_loss: Tensor | None = None
    mrfr_loss: Tensor | None = None
    smooth_loss: Tensor | None = None
    mrc_loss: Tensor | None = None
    mrc_kl_loss: Tensor | None = None
    object_loss: Tensor | None = None
    attribute_loss: Tensor | None = None
    tags_loss: Tensor | None = None
    answer_loss: Tensor | None = None
    caption_loss: Tensor | None = None
    logits: Tensor | None = None


class MMRegionBertForPreTraining(MMRegionBertPreTrainedModel):
    """The encoder with a head for each task that `config.task_weights` names.

    Tasks whose columns are in the batch are done, each different input in a pass of its own: hidden words and
    hidden regions (in one pass where `config.mask_together`); whole texts with the regions that they are
    shown with, for matching, alignment and answers; texts with tags; captions. Tasks have different numbers
    of items, so Trainer is not told to count them: it averages over accumulated batches; `MultitaskTrainer`
    counts each.
    """

    accepts_loss_kwargs = False
    towers = {"encoder": ("region_bert.",), "head": tuple(f"{head}." for head in HEADS)}
    _tied_weights_keys = {"mlm_head.decoder.weight": "region_bert.embeddings.tokens.weight"}
    _keys_to_ignore_on_load_unexpected = weights_beside(*HEADS, "pooler", "mask_feature", "mask_token")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        tasks, answers = set(config.task_weights), config.num_labels
        width, regions, pooled = config.hidden_size, config.region_hidden_size, config.pooler_size
        pools = bool(tasks & {"itm", "tags", "answer"})
        hides = bool(tasks & set(REGION_TASKS))
        self.region_bert = MMRegionBertModel(config, add_pooling_layer=pools, use_mask_token=hides)
        words = (
            RegionBertPredictionHead(config, width, config.vocab_size) if tasks & {"mlm", "caption"} else None
        )
        self.mlm_head = words
        self.itm_head = nn.Linear(pooled, 2) if "itm" in tasks else None
        self.feature_head = RegionBertFeatureHead(config) if "mrfr" in tasks else None
        classes = RegionBertPredictionHead(
            config, regions, config.num_region_classes, config.region_head_norm
        )
        self.region_classifier = classes if tasks & {"mrc", "mrc_kl"} else None
        detects = tasks & {"object", "attribute", "smooth"}
        self.detector_head = RegionBertDetectorHead(config) if detects else None
        self.tag_head = nn.Linear(pooled, config.num_tag_classes) if "tags" in tasks else None
        mlp = region_bert_mlp(config, pooled, 2 * pooled, answers) if "answer" in tasks else None  # ty: ignore[invalid-argument-type]
        self.answer_head = mlp
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
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        masked_regions: Tensor | None = None,
        region_class_labels: Tensor | None = None,
        region_class_scores: Tensor | None = None,
        object_labels: Tensor | None = None,
        attribute_labels: Tensor | None = None,
        itm_region_index: Tensor | None = None,
        itm_labels: Tensor | None = None,
        tag_input_ids: Tensor | None = None,
        tag_attention_mask: Tensor | None = None,
        tag_token_type_ids: Tensor | None = None,
        tag_labels: Tensor | None = None,
        answer_labels: Tensor | None = None,
        caption_labels: Tensor | None = None,
        tasks: Collection[str] | None = None,
        num_items_by_task: Mapping[str, Tensor | int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMRegionBertPreTrainingOutput:
        """The losses of the tasks whose columns are there; matching alone where there are none.

        `input_ids` to `region_mask` are those of `MMRegionBertModel.forward`, and so is what `kwargs` may
        hold; the columns of tasks, `mlm_input_ids` to `tasks`, those of `RegionPretrainingColumns`.
        `num_items_by_task` has the items of each task in the whole batch of which this is a part: hidden
        words ("mlm"), pairs ("itm", "wra"), hidden regions ("mrfr", "smooth", "mrc_kl"), those with a label
        ("mrc", "object", "attribute"), texts ("tags", "answer"), words to write ("caption").

        Returns:
            `loss`, the loss of each task, and `logits` (B, 2).

        Raises:
            ValueError: A task's columns are not complete, or there is no head for it.
        """
        text = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        regions = {"region_boxes": region_boxes, "region_mask": region_mask}
        image: dict[str, Any] = {"region_features": region_features, **regions, **kwargs}
        columns = RegionPretrainingColumns(
            *(mlm_input_ids, mlm_labels),
            *(masked_regions, region_class_labels, region_class_scores, object_labels, attribute_labels),
            *(itm_region_index, itm_labels),
            *(tag_input_ids, tag_attention_mask, tag_token_type_ids, tag_labels),
            *(answer_labels, caption_labels, tasks),
        )
        return self._learn(columns, {"input_ids": input_ids, **text}, image, dict(num_items_by_task or {}))

    def _learn(
        self,
        columns: RegionPretrainingColumns,
        text: dict[str, Any],
        image: dict[str, Any],
        items: dict[str, Tensor | int],
    ) -> MMRegionBertPreTrainingOutput:
        """Every task in its pass."""
        tasks, logits = columns.of(self.config), None
        losses = self._hidden_losses(tasks, columns, text, image, items)
        if not tasks or {"itm", "answer"} & set(tasks):
            logits, matched = self._matched_losses(tasks, columns, text, image, items)
            losses |= matched
        if "tags" in tasks:
            losses["tags"] = self._tag_loss(columns, image, items.get("tags"))
        if "caption" in tasks:
            losses["caption"] = self._caption_loss(columns.caption_labels, text, image, items.get("caption"))
        weighted = [self.config.task_weights[task] * loss for task, loss in losses.items()]
        named: dict[str, Any] = {f"{task}_loss": loss for task, loss in losses.items()}
        loss = torch.stack(weighted).sum() if weighted else None
        return MMRegionBertPreTrainingOutput(loss=loss, logits=logits, **named)

    def _hidden_losses(
        self,
        tasks: list[str],
        columns: RegionPretrainingColumns,
        text: dict[str, Any],
        image: dict[str, Any],
        items: dict[str, Tensor | int],
    ) -> dict[str, Tensor]:
        """Of hidden words and of hidden regions, in one pass or in two."""
        losses, encoded = {}, None
        guessed = [task for task in tasks if task in REGION_TASKS]
        hidden = {"masked_regions": columns.masked_regions} if guessed else {}
        if "mlm" in tasks:
            words, together = {**text, "input_ids": columns.mlm_input_ids}, self.config.mask_together
            encoded = self.region_bert(**words, **image, **(hidden if together else {}))
            losses["mlm"] = self._word_loss(encoded.last_hidden_state, columns.mlm_labels, items.get("mlm"))
        if guessed:
            if encoded is None or not self.config.mask_together:
                encoded = self.region_bert(**text, **image, **hidden)
            states = self.region_bert.own_regions(encoded.region_last_hidden_state)  # (B, R, E)
            losses |= self._region_losses(guessed, states, columns, image, items)
        return losses

    def _word_loss(self, states: Tensor, labels: Tensor | None, items: Tensor | int | None) -> Tensor:
        assert self.mlm_head is not None
        assert labels is not None
        check_place_labels(labels, states)
        if not torch.compiler.is_compiling():
            return masked_token_loss(states, self.mlm_head, labels, items)
        return labelled_cross_entropy(self.mlm_head(states).flatten(0, 1), labels.flatten(), items)

    def _region_losses(
        self,
        tasks: list[str],
        states: Tensor,
        columns: RegionPretrainingColumns,
        image: dict[str, Any],
        items: dict[str, Tensor | int],
    ) -> dict[str, Tensor]:
        masked: Any = columns.masked_regions
        masked = masked.bool()
        if image["region_mask"] is not None:
            masked = masked & image["region_mask"].bool()
        names = {REGION_TASKS[task] for task in tasks}
        targets: dict[str, Any] = {name: image.get(name, getattr(columns, name, None)) for name in names}
        hidden = HiddenRegions.of(states, masked, targets)
        guessed: dict[str, Tensor] = {}
        if "mrfr" in tasks and self.feature_head is not None:
            projection = self.region_bert.region_embeddings.feature_projection.weight
            guessed["mrfr"] = self.feature_head(hidden.states, projection)
        classes = [task for task in ("mrc", "mrc_kl") if task in tasks]
        if classes and self.region_classifier is not None:
            guessed |= dict.fromkeys(classes, self.region_classifier(hidden.states))
        if self.detector_head is not None:
            guessed |= self.detector_head(
                hidden.states, [task for task in tasks if task in ("object", "attribute", "smooth")]
            )
        return region_losses(hidden, guessed, items)

    def _matched_losses(
        self,
        tasks: list[str],
        columns: RegionPretrainingColumns,
        text: dict[str, Any],
        image: dict[str, Any],
        items: dict[str, Tensor | int],
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Of whole texts with the regions that they are shown with; and (B, 2) logits of matching."""
        if not tasks and self.itm_head is None:
            raise ValueError(
                f'`task_weights`={self.config.task_weights} has no matching ("itm") and no columns of other '
                "tasks are given; give those of a task."
            )
        index, labels = (columns.itm_region_index, columns.itm_labels) if "itm" in tasks else (None, None)
        encoded = self.region_bert(**text, **image, region_index=index, only_pooled="wra" not in tasks)
        logits = None if self.itm_head is None else self.itm_head(encoded.pooler_output)
        losses = {}
        if logits is not None and labels is not None:
            losses["itm"] = matching_loss(logits, labels, items.get("itm"))
        if "wra" in tasks and labels is not None:
            regions = self.region_bert.own_regions(encoded.region_last_hidden_state)
            real = _real_regions(image["region_mask"], index, regions)
            asked = labels != -100  # (B,)
            words = self._ordinary(text) & asked.unsqueeze(1)  # a pair without words adds nothing
            pair = (encoded.last_hidden_state, regions, words, real, labels == 1)
            losses["wra"] = word_patch_alignment_loss(*pair, num_items_in_batch=items.get("wra", asked.sum()))
        if "answer" in tasks and self.answer_head is not None:
            answers: Any = columns.answer_labels
            check_class_labels(answers, len(encoded.pooler_output))
            answers = answers if labels is None else answers.masked_fill(labels == 0, -100)
            scores = self.answer_head(encoded.pooler_output)
            losses["answer"] = labelled_cross_entropy(scores, answers, items.get("answer"))
        return logits, losses

    def _ordinary(self, text: dict[str, Any]) -> Tensor:
        """(B, L) bool, true on words: neither padding nor [CLS] or [SEP], also those between segments."""
        ids, mask = text["input_ids"], text["attention_mask"]
        words = inner_tokens(torch.ones_like(ids) if mask is None else mask)
        return words if self.config.eos_token_id is None else words & (ids != self.config.eos_token_id)

    def _tag_loss(
        self, columns: RegionPretrainingColumns, image: dict[str, Any], items: Tensor | int | None
    ) -> Tensor:
        assert self.tag_head is not None
        ids, mask, types = columns.tag_input_ids, columns.tag_attention_mask, columns.tag_token_type_ids
        labels: Any = columns.tag_labels
        logits = self.tag_head(self.region_bert(ids, mask, types, **image, only_pooled=True).pooler_output)
        check_class_labels(labels, len(logits))
        return labelled_cross_entropy(logits, labels, items)

    def _caption_loss(
        self, labels: Tensor | None, text: dict[str, Any], image: dict[str, Any], items: Tensor | int | None
    ) -> Tensor:
        assert labels is not None
        prefix = prefix_of_labels(labels, text["input_ids"])
        states = self.region_bert(**text, **image, prefix_mask=prefix).last_hidden_state  # (B, L, D)
        return self._word_loss(states, next_words(labels), items)


def _real_regions(region_mask: Tensor | None, index: Tensor | None, regions: Tensor) -> Tensor:
    """(B, R) bool, true on regions that each text is shown with."""
    if region_mask is None:
        return torch.ones_like(regions[..., 0], dtype=torch.bool)
    return (region_mask if index is None else region_mask[index]).bool()


@torch.no_grad()
def start_region_ranking(pretrained: MMRegionBertForPreTraining) -> MMRegionBertForImageAndTextRetrieval:
    """A model that ranks, of the encoder that was pre-trained; its head begins as that of a match.

    So UNITER does it before it learns retrieval: the score is the matching task's logit of "belong together".

    Args:
        pretrained: Has learnt matching.

    Raises:
        ValueError: It has not learnt matching.
    """
    if pretrained.itm_head is None:
        raise ValueError(
            f'`task_weights`={pretrained.config.task_weights} has no matching ("itm"), so there is no head '
            "to begin with; load the checkpoint with `MMRegionBertForImageAndTextRetrieval.from_pretrained`."
        )
    model = MMRegionBertForImageAndTextRetrieval(pretrained.config)
    weights = pretrained.region_bert.state_dict()
    model.region_bert.load_state_dict({name: weights[name] for name in model.region_bert.state_dict()})
    model.rank_output.weight.copy_(pretrained.itm_head.weight[1:])
    model.rank_output.bias.copy_(pretrained.itm_head.bias[1:])
    return model.to(device=pretrained.device, dtype=pretrained.dtype).train(pretrained.training)
