"""What can go wrong through the user's hands. Every error says where and how to mend it; the command exits with 2.

    ReproduceError
    ├── SpecError     a row, a config group, the schema, an override or versions.lock
    ├── SiteError     what this machine or cluster lacks for a row
    ├── LogError      a log or an evaluation file
    ├── RunError      a run folder, its launch or its state
    ├── WeightsFileError       released weights that cannot be had, or are not what they should be
    └── FailedEvaluationError  an evaluation that failed through no mistake of the user's; the command exits with 1

A scientific disagreement is never an error: it is a verdict.
"""

from pathlib import Path


class ReproduceError(Exception):
    """`path:line: message`, then one line that says how to mend it. `line` counts from 1 and needs a path."""

    exit_code = 2

    def __init__(
        self, message: str, *, path: Path | str | None = None, line: int | None = None, mend: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else Path(path)
        self.line = line
        self.mend = mend

    @property
    def place(self) -> str:
        """`path:line`, `path`, or the empty string."""
        if self.path is None:
            return ""
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\nmend: {self.mend}" if self.mend else text


class SpecError(ReproduceError):
    """A row, a config group, an override or versions.lock is not what it must be."""


class SiteError(ReproduceError):
    """The site lacks what the row needs; the message lists everything missing at once."""


class LogError(ReproduceError):
    """A log or an evaluation file cannot be read at all; a damaged line is a `Problem`, not an error."""


class RunError(ReproduceError):
    """A run folder is absent, incomplete, in use, or does not belong to the row that was asked for."""


class WeightsFileError(ReproduceError):
    """Released weights cannot be downloaded, are damaged, of another hash, or were withdrawn."""


class FailedEvaluationError(ReproduceError):
    """The evaluation of weights failed, through no mistake of the user's."""

    exit_code = 1
