"""Workers that load a training's data outlive a signal to all processes, from their first instruction on."""

import os
import random
import signal
import time
from multiprocessing import active_children

import pytest
from torch.utils.data import DataLoader, Dataset

from rs_rlhf.cli.signals import NUMBERS
from rs_rlhf.cli.stopping import patient_workers


class Signalled(Dataset):
    """Rows, of which reading the second sends the worker a signal twice."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 4

    def __getitem__(self, i):
        for _ in range(2 if i == 1 else 0):
            os.kill(os.getpid(), self.number)
            time.sleep(0.1)
        return i


@pytest.mark.parametrize("number", NUMBERS)
def test_a_worker_that_reads_leaves_signals_to_its_parent(number):
    with patient_workers():
        for _ in range(2):  # each epoch has workers of its own
            loader = DataLoader(Signalled(number), batch_size=None, num_workers=2)
            assert list(loader) == [0, 1, 2, 3]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_worker_that_begins_leaves_signals_to_its_parent(number, monkeypatch):
    """Torch seeds a worker once it has set a handler of its own, and before it asks anything of ours."""
    parent, seed, told = os.getpid(), random.seed, []

    def signalled(value):
        if os.getpid() != parent:
            os.kill(os.getpid(), number)
        seed(value)

    monkeypatch.setattr(random, "seed", signalled)
    with patient_workers():
        loader = DataLoader(range(4), batch_size=None, num_workers=1, worker_init_fn=told.append)
        assert list(loader) == [0, 1, 2, 3]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint(NUMBERS)


def test_without_it_a_signal_ends_a_worker():
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(DataLoader(Signalled(signal.SIGTERM), batch_size=None, num_workers=1))


def test_the_process_itself_ends_its_workers():
    """As multiprocessing does when a process ends before its loaders: it would wait for a worker that does not."""
    with patient_workers():
        rows = iter(DataLoader(Signalled(signal.SIGTERM), batch_size=None, num_workers=1))
        assert [next(rows) for _ in range(4)] == [0, 1, 2, 3]
    (worker,) = active_children()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
