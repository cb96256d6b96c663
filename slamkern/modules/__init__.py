"""Fused parts of Hugging Face models: found by what they compute, swapped in place, undone bit for bit."""
