"""Values made ahead of time in worker processes: a function and its arguments in, its results out, in order.

The workers are torch's. They come from a fork server, so that they start in milliseconds, hold no file or lock of the
trainer's and no state of its threads. A signal to the whole job (SLURM sends it to every process) leaves them alone:
the trainer saves its checkpoint and ends them. They die with the trainer, however it dies.
"""

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader

A = TypeVar("A")
R = TypeVar("R")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # those that end a launch, see train/__main__.py
AHEAD_PER_WORKER = 2  # results that wait for the consumer; a batch of 64 ImageNet images is 34 MB


def prefetch(make: Callable[[A], R], arguments: Iterable[A], *, workers: int, pin_memory: bool = False) -> Iterator[R]:
    """Results of `make` for each argument, in order. With workers, the first ones are being made when this returns.

    With none, each is made when it is asked for. `make` must be picklable. Its exceptions are raised here unchanged.
    """
    if not workers:
        return (make(argument) for argument in arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    others = set(multiprocessing.active_children())
    with _blocked_signals(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # how many is the site's business
        loader = DataLoader(
            Calls(make),
            sampler=arguments,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=AHEAD_PER_WORKER,
            collate_fn=_identity,
            worker_init_fn=_detach_worker,
            pin_memory=pin_memory,
            multiprocessing_context=context,
            generator=torch.Generator(),  # else torch's global one would move, with workers and not without
        )
        results = iter(loader)
    mine = [child for child in multiprocessing.active_children() if child not in others]
    consumed = _consume(results, mine)
    next(consumed)  # enters its `try`: from here on, closing it ends the workers
    return consumed


class Calls(Generic[A, R]):
    """A function as a dataset whose index is the argument. An exception is a result: torch would reword it."""

    def __init__(self, make: Callable[[A], R]) -> None:
        self.make = make

    def __getitem__(self, argument: A) -> R | Exception:
        try:
            return self.make(argument)
        except Exception as error:
            sent = _sendable(error)
            sent.add_note(f"In a worker process:\n{traceback.format_exc()}")
            return sent


def _sendable(error: Exception) -> Exception:
    """The exception, or what it says: one that cannot travel between processes would leave the trainer waiting."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _consume(results: Iterator, workers: list) -> Iterator:
    """Hand out results; at the end, or when the consumer closes this, end the workers."""
    try:
        yield None
        for result in results:
            yield _unwrapped(result)
    finally:
        del results  # torch asks its workers to end and waits some seconds
        for worker in workers:
            worker.kill()  # one that hangs on a file system would not hear of it: SIGTERM is ignored


def _unwrapped(result: R | Exception) -> R:
    if isinstance(result, Exception):
        raise result
    return result


def _identity(result: R) -> R:
    return result


def _detach_worker(worker: int) -> None:
    """Runs first in every worker: ignore the job's signals, die with the trainer.

    Torch's own watchdog looks at the parent process, which here is the fork server and outlives the trainer.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_trainer, daemon=True).start()


def _die_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold the job's signals back; processes started meanwhile never see them, ours come when this ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        multiprocessing.resource_tracker.ensure_running()  # starting it unblocks SIGINT and SIGTERM again
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
