"""slamkern inside other trainers: packed attention by name, a callback, a check of the first batch."""
