"""Another class in the place of `torch.nn.GRU`, for as long as it is wanted."""

from __future__ import annotations

from types import TracebackType

from torch import nn

# Where torch keeps the name: what is pickled as a torch.nn.GRU is looked up in the last one.
_PLACES = (nn, nn.modules, nn.modules.rnn)


class Replacement:
    """`made` under every name of `torch.nn.GRU`, from now until `undo()` or the end of a `with` block.

    Replacements may be nested; each puts back what it found.
    """

    def __init__(self, made: type[nn.RNNBase]):
        self._found = [place.GRU for place in _PLACES]
        for place in _PLACES:
            place.GRU = made  # type: ignore[misc]

    def undo(self) -> None:
        """Put back what was found; nothing where that was done before."""
        found, self._found = self._found, []
        if found:
            for place, was in zip(_PLACES, found, strict=True):
                place.GRU = was  # type: ignore[misc]

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
