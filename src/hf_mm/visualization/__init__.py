"""What a vision transformer sees: arrays computed from a model, and matplotlib figures of them."""
