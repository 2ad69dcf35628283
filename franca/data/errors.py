"""What is wrong with data: exceptions whose message names the file or folder and what belongs in it."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """Data that is missing or not what it should be; the message names the folder and what belongs in it."""


class MissingDataError(DataError):
    """A root that does not exist, or holds none of the data: they have to be fetched."""


class UnreadableImageError(DataError):
    """One file that does not hold an image; the message names it."""


@contextlib.contextmanager
def read_or_refuse() -> Iterator[None]:
    """Within it, or within a function that it decorates, what the file system will not show is a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}; name a folder of images that this user may read"
        ) from error
