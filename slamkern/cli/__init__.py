"""The ``slamkern`` command line."""
