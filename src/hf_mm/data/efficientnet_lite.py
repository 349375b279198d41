"""The image processor of EfficientNet-Lite0, whose maps regions are read from."""

from ..models.clip.image_processing_clip import MMCLIPImageProcessor

__all__ = ["lite_image_processor"]


def lite_image_processor(size_px: int = 224) -> MMCLIPImageProcessor:
    """The pixels that EfficientNet-Lite0 was trained on, of the whole picture: nothing is cut off.

    Args:
        size_px: Height and width that pictures are stretched to.
    """
    return MMCLIPImageProcessor(
        size={"height": size_px, "width": size_px},
        do_center_crop=False,
        exact=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
