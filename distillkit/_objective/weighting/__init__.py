"""Weights that settle themselves: factors of the terms' own weights, found while training."""
