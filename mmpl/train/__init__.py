"""Procedural data, losses and training loops of the embedded model."""
