"""Vision-language models: a vision tower, a connector and any causal language model."""
