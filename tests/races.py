"""CUDA streams without a GPU: what each operation reads and writes, on which stream, and whether that was safe.

    with Races(monkeypatch) as races: ...      torch.cuda's streams are those of this file
    races.found                                what was wrong, empty for nothing

The operations run at once, on a CPU. What is followed is what a GPU is free to do: streams run on by themselves, and
one knows of another's work only what a wait has told it (a vector clock). Reading what is not known to be written is a
race, whatever the order was this time. And memory belongs to the stream that was current when it was made: its
allocator may give it to another tensor while a further stream still reads it, unless `record_stream` has named that
stream. What autograd does on streams in the backward pass is not followed: on a CPU it knows of none.
"""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    """In the place of torch.cuda.Stream; `known[s]`: how many operations of s are done before what comes next here."""

    def __init__(self, device=None):
        self.known: dict[Stream, int] = {self: 0}

    def wait_event(self, event: dict) -> None:
        for stream, done in event.items():
            self.known[stream] = max(self.known.get(stream, 0), done)

    def record_event(self) -> dict:
        return dict(self.known)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Memory:
    """A storage: whose it is, who may use it, and the operations that used it last, as pairs of stream and number."""

    def __init__(self, storage, owner: Stream):
        self.storage, self.users = storage, {owner}  # kept, so that no other has its address
        self.written, self.read = (owner, 0), []


class Races(TorchDispatchMode):
    """Follows all operations inside; `caller` is the stream that is current at first."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.caller = self.current = Stream()
        self.memories: dict[int, Memory] = {}
        self.found: list[str] = []
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: self.memory_of(t).users.add(stream))

    @contextlib.contextmanager
    def on(self, stream: Stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def memory_of(self, t: torch.Tensor, owner: Stream | None = None) -> Memory:
        """Return the memory of a tensor; what was made outside is the caller's."""
        storage = t.untyped_storage()
        return self.memories.setdefault(storage._cdata, Memory(storage, owner or self.caller))

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = [self.memory_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        results = operator(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(results) if isinstance(t, torch.Tensor)]
        writes_into = {
            id(self.memory_of(value))
            for value, argument in zip(args, operator._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor)
        }
        new = [t for t in made if t.untyped_storage()._cdata not in self.memories]
        if not new and not writes_into and made:
            return results  # views, for which no kernel runs
        here = self.current
        here.known[here] += 1
        now = here, here.known[here]
        for memory in given:
            before = [memory.written, *(memory.read if id(memory) in writes_into else ())]
            if any(here.known.get(stream, 0) < number for stream, number in before):
                self.found.append(f"{operator} does not wait for what it needs")
            if here not in memory.users:
                self.found.append(f"{operator} uses memory that may be given to another tensor")
            if id(memory) in writes_into:
                memory.written, memory.read = now, []
            else:
                memory.read.append(now)
        for t in new:
            self.memory_of(t, here).written = now
        return results
