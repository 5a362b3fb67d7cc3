"""docs/design.md's drawing of the rooms, and the package."""

import re
from pathlib import Path

import tritongru

PACKAGE = Path(tritongru.__file__).parent
PAGE = PACKAGE.parent / "docs" / "design.md"
DRAWN = ("", "call", "backends", "tuning", "tools")  # rooms whose modules are named one by one


def test_the_drawing_names_every_module() -> None:
    block = re.search(r"    tritongru/\n(.*?)    tests/", PAGE.read_text(), re.DOTALL)
    assert block is not None
    named = set(re.findall(r"(?<![\w'])(\w+)/?(?=\s|$)", block[1]))
    for room in DRAWN:
        for path in (PACKAGE / room).iterdir():
            is_module = path.suffix == ".py" or (path.is_dir() and any(path.glob("*.*")))
            if is_module and not path.name.startswith("__"):
                assert path.stem in named, f"docs/design.md does not name {path.relative_to(PACKAGE)}"
