"""Where the public functions take a list of strings, one string is refused: it would be a list of its letters."""

import pytest
from support.tiny_causal_lm import ending_model

import slamkern
from slamkern.errors import SlamkernError


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: slamkern.load_pairs("corpus:", "de"), "languages"),
        (lambda: slamkern.evaluate(ending_model(), None, "corpus", languages="de"), "languages"),
        (lambda: slamkern.compare("a", "b", languages="de"), "languages"),
        (lambda: slamkern.compare("a", "b", allow="prompt"), "allow"),
        (lambda: slamkern.record_stats(ending_model(), "de").__enter__(), "languages"),
        (lambda: slamkern.collect_stats(ending_model(), None, {"de": "ab cd"}), r"texts\['de'\]"),
        (lambda: slamkern.apply_selection(ending_model(), [0], "up"), "projections"),
    ],
)
def test_one_string_is_no_list(call, name):
    with pytest.raises(SlamkernError, match=rf"{name} is the string '.*'; expected a list"):
        call()
