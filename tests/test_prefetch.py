"""Results come in order whatever the workers do, and workers neither outlive the trainer nor end before it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from franca.data.prefetch import prefetch


def square(number: int) -> torch.Tensor:
    return torch.tensor(number**2)


def sleep_less(number: int) -> int:
    """The first results take longest, so that an order by completion would show."""
    time.sleep(0.02 * max(0, 5 - number))
    return number


def refuse(number: int) -> int:
    if number == 3:
        raise KeyError("three")
    return number


class StrangeError(Exception):
    """An exception that pickle cannot make again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def refuse_strangely(number: int) -> int:
    raise StrangeError(number, 2)


def process_id(_: int) -> int:
    return os.getpid()


def wait_until_gone(process: int, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers: int) -> None:
    """One result per argument, in the arguments' order, however many workers make them."""
    assert list(prefetch(sleep_less, range(9), workers=workers)) == list(range(9))
    assert [int(x) for x in prefetch(square, range(20), workers=workers)] == [i * i for i in range(20)]


@pytest.mark.parametrize("workers", [0, 1])
def test_exception_is_raised_as_it_was(workers: int) -> None:
    """The caller gets the function's own exception at its place in the order, not a wrapped one."""
    results = prefetch(refuse, range(9), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError) as caught:
        next(results)
    assert str(caught.value) == "'three'"


def test_exception_that_cannot_travel_is_told() -> None:
    """An exception that pickle cannot carry ends the run with its name and words instead of hanging it."""
    with pytest.raises(RuntimeError, match="StrangeError: 1 and 2"):
        next(prefetch(refuse_strangely, [1], workers=1))


def test_work_begins_before_it_is_asked_for(tmp_path: Path) -> None:
    """Results are being made when `prefetch` returns, so that the first step finds its batch."""
    results = prefetch(Path.touch, [tmp_path / "a", tmp_path / "b"], workers=1)
    deadline = time.monotonic() + 30
    while not (tmp_path / "a").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "a").exists()
    assert list(results) == [None, None]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_job_reaches_the_trainer_alone(tmp_path: Path, number: signal.Signals) -> None:
    """SLURM signals every process of a job: the trainer hears it once, its workers work on and new ones can start."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from franca.data.prefetch import prefetch\n"
        "def work(number):\n"
        "    time.sleep(0.01)\n"
        "    return number, os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    number, heard = int(sys.argv[1]), []\n"
        "    signal.signal(number, lambda *_: heard.append(number))\n"
        "    results = prefetch(work, range(40), workers=2)\n"
        "    first = [next(results) for _ in range(8)]\n"
        "    os.killpg(os.getpgrp(), number)\n"
        "    rest = list(results)\n"
        "    again = list(prefetch(work, range(8), workers=1))\n"
        "    assert [n for n, _ in first + rest + again] == [*range(40), *range(8)]\n"
        "    assert len({pid for _, pid in first + rest}) == 2\n"
        "    assert heard == [number]\n"
    )
    trainer = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(int(number))],
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=100,
    )
    assert (trainer.returncode, trainer.stdout, trainer.stderr) == (0, "", "")


def test_workers_of_another_ones_fork_server_ignore_signals(tmp_path: Path) -> None:
    """Where something else started the fork server, signals unblocked, the workers ignore them on their own."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import multiprocessing.forkserver, os, signal\n"
        "from franca.data.prefetch import SIGNALS, prefetch\n"
        "def work(_):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.forkserver.ensure_running()\n"
        "    results = prefetch(work, range(60), workers=1)\n"
        "    worker = next(results)\n"
        "    for number in SIGNALS:\n"
        "        os.kill(worker, number)\n"
        "    assert set(results) == {worker}\n"
    )
    trainer = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=100)
    assert (trainer.returncode, trainer.stderr) == (0, "")


def test_closing_ends_the_workers() -> None:
    """After `close` no worker is left, whatever was still to be made."""
    results = prefetch(process_id, range(1000), workers=2)
    started = {next(results) for _ in range(8)}
    results.close()
    assert len(started) == 2
    assert all(wait_until_gone(worker, seconds=10) for worker in started)


def test_closing_ends_workers_that_nobody_waited_for() -> None:
    """A trainer that fails before its first step leaves no worker behind."""
    others = set(multiprocessing.active_children())
    results = prefetch(process_id, range(1000), workers=2)
    started = [child for child in multiprocessing.active_children() if child not in others]
    results.close()
    assert len(started) == 2
    assert all(wait_until_gone(child.pid, seconds=10) for child in started)


def test_own_signal_handler_stays_in_force() -> None:
    """Starting workers leaves the trainer's signals neither blocked nor lost."""
    received = []
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append("caught"))
    try:
        results = prefetch(square, range(2), workers=1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert [int(x) for x in results] == [0, 1]
        assert received == ["caught"]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_global_generator_is_left_alone() -> None:
    """Torch's global random state after a start of workers is the one before."""
    before = torch.get_rng_state()
    prefetch(square, range(2), workers=1).close()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_die_with_the_trainer(tmp_path: Path) -> None:
    """After kill -9 of the trainer its workers are gone within seconds, even while one of them is busy."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import os, time\n"
        "from franca.data.prefetch import prefetch\n"
        "def work(number):\n"
        "    if number > 1: time.sleep(600)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    results = prefetch(work, range(100), workers=2)\n"
        "    print(next(results), next(results), flush=True)\n"
        "    time.sleep(600)\n"
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    workers = [int(word) for word in trainer.stdout.readline().split()]
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert len(set(workers)) == 2
    assert all(wait_until_gone(worker, seconds=10) for worker in workers)
