"""Objectives, packed log-probs and the trainer. Everything here imports torch."""
