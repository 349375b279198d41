"""The CLIP family: images and texts in one space."""
