"""Measurements of slamkern, run from a checkout: ``python -m benchmarks.gpu`` runs all of them on this machine.

Every stage is a module with the same command line (stage.py) and writes its rows into one JSON file a machine
(results.py); the tables of the README are made from those files (readme.py). None of it is installed.
"""
