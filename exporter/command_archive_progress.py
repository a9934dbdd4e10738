"""Progress of the archive's long commands: a bar on a terminal's stderr, nothing where that is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Told(Protocol):
    """Tells the bar which collection is worked on, and how many more of its documents are done."""

    def __call__(self, collection: str, documents: int = 0, /) -> None: ...


@contextmanager
def documents_progress(what: str, total: int | None = None) -> Iterator[Told]:
    """A bar that counts documents; without an end while `total` is not known."""
    with _bar(what, total) as update:
        yield lambda collection, documents=0: update(collection, documents, documents)


@contextmanager
def collections_progress(what: str, collections: Sequence[str]) -> Iterator[Told]:
    """A bar that counts collections, in this order, and shows their documents as a number.

    How many documents there are is not asked: the embedded server would read them all to tell.
    """
    places = {name: place for place, name in enumerate(collections)}
    at = 0

    def tell(collection: str, documents: int = 0, /) -> None:
        nonlocal at
        place = places.get(collection, at)
        update(collection, place - at, documents)
        at = place

    with _bar(what, max(len(collections), 1)) as update:
        yield tell
        update("", len(collections) - at, 0)


class _Update(Protocol):
    def __call__(self, collection: str, advance: int, documents: int, /) -> None: ...


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[_Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[documents]} documents"), TimeElapsedColumn())
    done = 0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task(what, total=total, documents=0)

        def update(collection: str, advance: int, documents: int, /) -> None:
            nonlocal done
            done += documents
            description = f"{what} {collection}" if collection else None
            shown.update(task, advance=advance, description=description, documents=done)

        yield update
        shown.refresh()
