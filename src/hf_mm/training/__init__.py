"""What Trainer lacks: rates by tower, stages, adapters by tower, contrastive batches of any size."""
