"""Items of several processes in the main one, and what it does about a process that is gone."""

import os
import signal
import time
from datetime import timedelta

import pytest
from support.processes import launch

from slamkern import distributed, item_stream
from slamkern.errors import SlamkernError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(item_stream, "BEAT", timedelta(seconds=0.1))
    monkeypatch.setattr(item_stream, "SILENCE", timedelta(seconds=1.5))


@pytest.mark.parametrize("processes", [1, 3])
def test_what_processes_make_arrives_in_the_main_one(processes):
    def run(rank):
        distributed.join()
        return list(item_stream.stream_to_main((rank, n) for n in range(rank * 2)))

    main, *others = launch(processes, run)
    assert sorted(main) == [(rank, n) for rank in range(processes) for n in range(rank * 2)]
    assert others == [[]] * (processes - 1)


def test_a_process_that_was_killed_is_noticed_and_what_it_had_sent_is_not_lost():
    arrived = []

    def items(rank):
        yield rank
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(rank):
        started = time.monotonic()
        try:
            arrived.extend(item_stream.stream_to_main(items(rank)))
        except SlamkernError as error:
            return arrived, str(error), time.monotonic() - started

    (found, said, seconds), _, _ = launch(3, run, dies=(1,))
    assert sorted(found) == [0, 1, 2] and "process 1 has been silent for" in said and seconds < 20


def test_a_process_that_takes_its_time_is_waited_for():
    def slow(rank):
        time.sleep(4 * rank)
        yield rank

    assert launch(2, lambda rank: sorted(item_stream.stream_to_main(slow(rank)))) == [[0, 1], []]
