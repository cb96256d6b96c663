"""Show: one HTML page with its figures."""
