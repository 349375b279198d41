"""transformers' LLaVA as this family's own: one table of names, read in both directions.

Covers what `transformers.LlavaForConditionalGeneration` saves and has saved (LLaVA-1.5 and its kin): the
files of transformers 5 (second column), those of transformers 4 with a CLIP tower and the modules of
transformers 5 (further columns).
"""

from typing import Any

from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedConfig, ProcessorMixin

from ...hub.interop import ForeignCheckpoint

__all__ = ["LLAVA_CHECKPOINT", "LlavaCheckpoint"]

# our field: theirs
LLAVA_FIELDS = {
    "vision_config": "vision_config",
    "text_config": "text_config",
    "image_token_id": "image_token_index",
    "vision_feature_layer": "vision_feature_layer",
    "vision_feature_select_strategy": "vision_feature_select_strategy",
    "connector_hidden_act": "projector_hidden_act",
    "connector_bias": "multimodal_projector_bias",
    "dtype": "dtype",
}
# Towers whose states are patches only, for which LLaVA must not drop the first.
WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model")


class LlavaCheckpoint(ForeignCheckpoint):
    """A checkpoint of `transformers.LlavaForConditionalGeneration`."""

    model_type = "llava"
    classes = {"MMVLMForConditionalGeneration": "LlavaForConditionalGeneration"}
    fields = LLAVA_FIELDS
    defaults = {"image_token_index": 32000}
    fixed = {"connector": "mlp", "pooling_size": 1, "padding_embedding": False}
    names = (
        (
            "vision_tower.encoder.*",
            "vision_tower.*",
            "vision_tower.vision_model.*",
            "model.vision_tower.vision_model.*",
            "model.vision_tower.*",
        ),
        ("connector.*", "multi_modal_projector.*", "model.multi_modal_projector.*"),
        ("language_model.lm_head.*", "language_model.lm_head.*", "lm_head.*"),
        ("language_model.model.*", "language_model.model.*", "model.language_model.*"),
    )

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`. Blocks that the tower does not keep are not written either."""
        fields = super().config_to(ours, model_class)
        self._check_expressible(ours)
        layers, chosen = ours.vision_layers, ours.vision_feature_layer
        kept = max(layers)
        counted = [layer - kept - 1 for layer in layers]
        fields["vision_config"]["num_hidden_layers"] = kept
        fields["vision_feature_layer"] = counted[0] if isinstance(chosen, int) else counted
        if ours.vision_config.model_type in WITHOUT_CLS:
            fields["vision_feature_select_strategy"] = "full"
        fields["image_seq_length"] = ours.patches_per_side**2
        fields["tie_word_embeddings"] = ours.tie_word_embeddings
        return fields

    def processor_to(self, processor: Any) -> Any:
        """See `ForeignCheckpoint`. Only the single view of LLaVA has a counterpart."""
        if isinstance(processor, ProcessorMixin) and type(processor).__name__ == "MMVLMProcessor":
            return _llava_processor(processor)
        return super().processor_to(processor)

    @staticmethod
    def _check_expressible(config: PreTrainedConfig) -> None:
        """Refuse what LLaVA does not have, by the name of the field."""
        width = config.text_config.hidden_size
        if config.connector_hidden_size not in (None, width):
            raise ValueError(
                f"`connector_hidden_size`={config.connector_hidden_size} cannot be exported, LLaVA has "
                f"{width} only; share the folder itself, it loads with `trust_remote_code=True`."
            )
        if config.vision_feature_layer is None or config.vision_config.model_type.startswith("mm_"):
            raise ValueError(
                f"A {config.vision_config.model_type!r} tower read at `vision_feature_layer`="
                f"{config.vision_feature_layer} cannot be exported, LLaVA reads hidden states of a tower of "
                "transformers; share the folder itself, it loads with `trust_remote_code=True`."
            )


def _llava_processor(processor: Any) -> LlavaProcessor:
    """The processor of transformers that prepares a single view in the same way."""
    ours = processor.image_processor
    if ours.fit != "crop" or ours.max_crops:
        raise ValueError(
            f"`fit`={ours.fit!r} with `max_crops`={ours.max_crops} cannot be exported, LLaVA's processor "
            'crops the middle of a single view (`fit`="crop", `max_crops`=0).'
        )
    side = ours.size["height"]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=ours.resample,
        do_rescale=ours.do_rescale,
        rescale_factor=ours.rescale_factor,
        do_normalize=ours.do_normalize,
        image_mean=ours.image_mean,
        image_std=ours.image_std,
    )
    return LlavaProcessor(
        images,
        processor.tokenizer,
        patch_size=ours.patch_size,
        vision_feature_select_strategy="full",  # counts the patches, whatever precedes them in the tower
        num_additional_image_tokens=0,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
    )


LLAVA_CHECKPOINT = LlavaCheckpoint()
