"""Attentive Feature Alignment in JAX: fine-tune on few labels and keep what the source network knows."""

__version__ = "0.1.0"
