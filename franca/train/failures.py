"""A process that fails or hangs in, its own account in the run folder out: of every process, not of the first alone.

Where one of several processes fails, the others fail of its absence, and the first one's log tells of that. So each
leaves `failures/rank_N.json`, with the time, for the harness to find who was first; one that is stuck leaves the stacks
of its threads in `failures/rank_N.stacks`. The room for an account is taken before there is one: disks fill up too.
"""

import contextlib
import faulthandler
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from franca.distributed import rank
from franca.train.metrics import LOG
from franca.train.run_folder import read_state, write_state

FOLDER = "failures"
ROOM_BYTES = 16384


@dataclass(frozen=True)
class Watchdog:
    """Ends the process, with the stacks of its threads in `file`, where a step takes more than `hang_s`; 0 waits."""

    file: IO[str]
    hang_s: int

    def beat(self) -> None:
        """A step begins."""
        if self.hang_s:
            faulthandler.dump_traceback_later(self.hang_s, file=self.file, exit=True)

    def rest(self) -> None:
        """What comes now may take its time."""
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def report_failure(folder: Path, *, of: int, hang_s: int) -> Iterator[Watchdog]:
    """Account for what the block raises: this process's file, a failed state, a line in the log. The exception goes on.

    The watchdog is asleep until its first beat.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    account = folder / FOLDER / f"rank_{rank()}.json"
    account.write_bytes(b" " * ROOM_BYTES)
    with account.with_suffix(".stacks").open("w") as stacks:
        watchdog = Watchdog(stacks, hang_s)
        try:
            yield watchdog
        except (Exception, KeyboardInterrupt) as error:
            with contextlib.suppress(OSError):  # on a full disk what cannot be written must not hide the failure
                _write_account(account, error)
                _write_state(folder, error, of=of)
            raise
        finally:
            watchdog.rest()


def _write_account(path: Path, error: BaseException) -> None:
    """Put the failure into the room that was kept, in place."""
    text = "".join(traceback.format_exception(error))
    content = {"time": time.time(), "rank": rank(), **describe_failure(error), "traceback": text[-ROOM_BYTES // 4 :]}
    data = json.dumps(content).encode()
    if len(data) > ROOM_BYTES:
        data = json.dumps({**content, "message": content["message"][:500], "traceback": ""}).encode()
    with path.open("r+b") as file:
        file.write(data.ljust(ROOM_BYTES))


def _write_state(folder: Path, error: BaseException, *, of: int) -> None:
    failure = describe_failure(error)
    LOG.error("%(type)s: %(message)s (%(where)s)", failure)
    state = read_state(folder)
    write_state(
        folder,
        state="failed",
        iteration=state.get("iteration", 0),
        of=of,
        images_per_second=state.get("images_per_second"),
        error=failure,
    )


def describe_failure(error: BaseException) -> dict[str, str]:
    """An exception's type, message, and the file and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return {"type": type(error).__name__, "message": str(error), "where": where}
