"""Measure: statistics of FFN neurons per language."""
