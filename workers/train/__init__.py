"""Training a bundle by its own `train.json`, watched: progress, a checkpoint to go on from, curves, a card."""
