"""What is wrong with data: exceptions whose message names the file or folder and what belongs in it."""


class DataError(ValueError):
    """Data that is missing or not what it should be; the message names the folder and what belongs in it."""


class UnreadableImageError(DataError):
    """One file that does not hold an image; the message names it."""
