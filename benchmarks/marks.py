"""Generated blocks in documents: the lines between two marks, which say who writes them."""

from __future__ import annotations

import re

from edgewam.core.errors import EdgewamError


def with_block(text: str, name: str, block: str) -> str:
    """The document with the block of this name replaced.

    Raises:
        EdgewamError: the document has lost the marks `<!-- name: ... -->` and `<!-- end of name -->`.
    """
    marks = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if not marks.search(text):
        raise EdgewamError(f"The document has lost the marks of its block '{name}'. Put them back.")
    return marks.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)
