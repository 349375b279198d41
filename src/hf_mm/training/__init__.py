"""What Trainer lacks: rates by tower, stages, adapters that hit what they say, evaluation by generation."""
