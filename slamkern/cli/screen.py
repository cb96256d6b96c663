"""A console (rich) for text with names of others in it: brackets are brackets, and nothing steers the terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from slamkern.errors import printable


class Screen(Console):
    """Prints strings, and those in tables, as they are; what is styled on purpose is a ``rich.text.Text``."""

    def __init__(self, width: int | None = None) -> None:
        """width: at least so many columns, of a narrower terminal or a file too."""
        super().__init__(markup=False, emoji=False, highlight=False)
        if width is not None:
            self.width = max(self.width, width)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
