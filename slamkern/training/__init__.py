"""Align: the training loop and what it saves."""
