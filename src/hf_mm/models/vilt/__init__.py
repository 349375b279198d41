"""The Vision-and-Language Transformer family: text and patches in one encoder."""
