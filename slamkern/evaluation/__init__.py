"""Measure again: answer accuracy and translation, before and after alignment."""
