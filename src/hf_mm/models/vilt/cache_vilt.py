"""Keys and values of a row of text and image, kept while its text goes on."""

from ...layers.prefix_cache import PrefixCache
from .configuration_vilt import MMViltConfig

__all__ = ["ViltCache"]


class ViltCache(PrefixCache):
    """Keys and values of each block, which of them are padding, and where each text goes on.

    Args:
        config: Of the model.
        prompts: Rows that are read first, each of which may be continued several times.
    """

    def __init__(self, config: MMViltConfig, prompts: int) -> None:
        super().__init__(config.max_position_embeddings, prompts, config=config)
