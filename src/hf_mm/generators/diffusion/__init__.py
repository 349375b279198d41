"""Diffusion and flow matching: denoisers, what they learn by, the pipeline that draws with them."""
