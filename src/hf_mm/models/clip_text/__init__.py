"""The causal text transformer of CLIP, as a family of its own: any model may take it as a tower."""
