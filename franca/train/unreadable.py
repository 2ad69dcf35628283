"""The images of a run that could not be read: their lines from all processes in; the log and `unreadable.txt` out."""

from collections.abc import Iterable
from pathlib import Path

from franca.distributed import all_gather_texts, rank
from franca.train.metrics import LOG, mend_last_line

LOGGED = 100  # of a launch; the file names all


class UnreadableImages:
    """Names every image once over all launches: in `unreadable.txt` of the run folder, the first in the log too."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "unreadable.txt"
        self.pending: list[str] = []
        self.logged = 0
        mend_last_line(self.path)
        self.known = set(self.path.read_text().splitlines()) if self.path.exists() else set[str]()

    def add(self, lines: Iterable[str]) -> None:
        """Keep one step's lines; nothing waits for the other processes."""
        self.pending += lines

    def write(self) -> int:
        """Write what is new since the last call, of all processes, and return how many images it is by now."""
        new = [line for line in dict.fromkeys(all_gather_texts(self.pending)) if line not in self.known]
        self.pending.clear()
        self.known.update(new)
        if new and rank() == 0:
            with self.path.open("a") as file:
                file.writelines(f"{line}\n" for line in new)
            for line in new[: max(LOGGED - self.logged, 0)]:
                LOG.warning("an image that could not be read was replaced: %s", line)
            self.logged += len(new)
            LOG.warning("%d images could not be read so far; their names are in %s", len(self.known), self.path.name)
        return len(self.known)
