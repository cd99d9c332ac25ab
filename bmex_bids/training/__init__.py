"""Training: synthesis from label maps, degradations, losses, the training script."""
