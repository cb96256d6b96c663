"""The embedded parallel corpus: arithmetic word problems in ten languages, generated, with answers and solutions."""

from slamkern.data.synthetic.generator import LANGUAGES, Problem, generate

__all__ = ["LANGUAGES", "Problem", "generate"]
