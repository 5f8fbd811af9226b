"""A training that a signal stops: it saves a checkpoint after its step and ends in one sentence.

Left out: a stop within an evaluation, which is waited for; a second signal does not wait.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .signals import ASKED, NUMBERS, Stopped, warn


class StopAtSignal(TrainerCallback):
    """Stops all processes of a training after the same step, with a checkpoint, once one of them was sent a signal.

    Args:
        trainer (`Trainer`): The training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.number = 0  # of the signal that stopped the training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Defers signals from now on."""
        ASKED.defer = self._say

    def _say(self, number: int) -> None:
        if self.trainer.is_world_process_zero():
            warn("stopping after this step, with a checkpoint; a second signal ends at once.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Asks all processes, and stops."""
        number = ASKED.number
        if args.world_size > 1:
            sent = torch.tensor([number], device=args.device)
            number = int(self.trainer.accelerator.gather(sent).max())
        if number:
            self.number = number
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Neither saves again nor evaluates."""
        if self.number:
            control.should_save = control.should_evaluate = False


class _Patient:
    """Initializer of a worker that loads data: signals are left to the trainer, which alone ends the worker.

    A cluster sends a signal to all processes of a job, and a training without its workers cannot end its step.
    """

    def __init__(self, first: object) -> None:
        self.first = first

    def __call__(self, worker: int) -> None:
        Thread(target=self._wait_for_the_trainer, daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        if callable(self.first):
            self.first(worker)

    def _wait_for_the_trainer(self) -> None:
        """SIGTERM stays blocked and is taken here, where its sender is known, as it is not in a handler."""
        trainer = parent_process()
        while trainer is not None and signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer.pid:
            pass
        os._exit(0)


@contextmanager
def patient_workers() -> Iterator[None]:
    """Makes the workers of every loader leave signals to this process, from their first instruction on.

    They begin with signals blocked, since torch gives a worker a handler of its own that would end it. The class is
    changed, not the trainer's loader: accelerate wraps that in another, and evaluations make their own.
    """
    begin = DataLoader.__iter__

    def patiently(loader: DataLoader) -> object:
        if not loader.num_workers:
            return begin(loader)
        if not isinstance(loader.worker_init_fn, _Patient):
            loader.worker_init_fn = _Patient(loader.worker_init_fn)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            return begin(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    if not hasattr(signal, "sigwaitinfo"):  # macOS and Windows, which no cluster of GPUs runs
        yield
        return
    DataLoader.__iter__ = patiently  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        DataLoader.__iter__ = begin  # type: ignore[method-assign]


@contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """Trains until the end, or until the end of the step in which a signal comes.

    Raises:
        Stopped: A signal has stopped the training; says where its checkpoint is.
    """
    stop = StopAtSignal(trainer)
    trainer.add_callback(stop)
    try:
        with patient_workers():
            yield
    finally:
        ASKED.defer = None
        trainer.remove_callback(stop)
    if not stop.number:
        return
    trainer.accelerator.wait_for_everyone()  # the first process may still write
    path = os.path.join(str(trainer.args.output_dir), f"checkpoint-{trainer.state.global_step}")
    if hasattr(trainer, "end"):
        trainer.end()
    name = signal.Signals(stop.number).name
    raise Stopped(
        stop.number,
        f"stopped by {name}, saved to {path}; the same command with --resume_from_checkpoint true resumes from it.",
    )
