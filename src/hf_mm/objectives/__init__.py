"""Training objectives as functions of tensors, shared by the families."""
