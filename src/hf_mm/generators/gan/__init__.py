"""GANs: a generator and its discriminator without normalisation layers, what they learn by, the pipeline."""
