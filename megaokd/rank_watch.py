"""Signs of life of every rank, so that a lost one ends the others at once and is named.

A collective waits for a rank that will never come, for as long as its timeout, and then cannot say which one it was.
So each rank has a thread that counts up a number in the store of the process group, once a second, whatever the main
thread waits for. Rank 0 reads all numbers and publishes a verdict, the others read that: a second costs n + 2 keys for
rank 0 and two for each other rank.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from megaokd.exit_status import ExitStatus

INTERVAL_S = 1.0
TROUBLE_LIMIT_S = 4.0
"""Silence after which a rank counts as lost once a collective has failed somewhere."""
_LAST_WORDS_S = 3.0
_ADVICE = "Nothing beyond the last checkpoint is lost: start again with train.resume=auto"


def failed_collective(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that of a collective: most likely another rank is behind it.

    NCCL's and the store's have a type of their own; gloo's are plain RuntimeErrors that name one of its files.
    """
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__
    return False


class RankWatch:
    """This rank's signs of life, and its eye on the others; `store` is a connection that nothing else uses."""

    def __init__(self, store: Store, rank: int, world_size: int, limit_s: float, say: Callable[[str], None]) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.limit_s = limit_s
        self.say = say
        self._count = 0
        self._ending = False
        self._final = ""
        self._closed = threading.Event()
        self._limit_now = limit_s
        self._answered = time.monotonic()
        """When the store last answered."""
        self._exchange = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._guard = threading.Thread(target=self._watch_store, name="rank-watch-guard", daemon=True)
        store.set_timeout(timedelta(seconds=max(limit_s, TROUBLE_LIMIT_S)))
        store.set(f"where/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        store.set(f"beat/{rank}", "0")
        if rank == 0:
            store.set("verdict", json.dumps([0, ""]))

    @classmethod
    def start(cls, limit_s: float, say: Callable[[str], None]) -> "RankWatch | None":
        """Begin to watch the default process group over the launcher's store; None in a group of one.

        `say` prints the sentence that this process ends with.
        """
        if dist.get_world_size() == 1:
            return None
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefixed = PrefixStore(f"megaokd/watch/{attempt}", store)
        watch = cls(prefixed, dist.get_rank(), dist.get_world_size(), limit_s, say)
        watch._exchange.start()
        watch._guard.start()
        return watch

    def trouble(self) -> None:
        """A collective failed here: give the watch time to name the rank behind it.

        Where one is lost this process ends in the meantime, with the sentence; otherwise the method returns.
        """
        self._limit_now = min(self.limit_s, TROUBLE_LIMIT_S)
        self._tell(lambda: self.store.add("trouble", 1))
        self._guard.join(TROUBLE_LIMIT_S + 4 * INTERVAL_S)

    def last_words(self, text: str) -> None:
        """This rank ends by an error of its own: let the others end with it."""
        self._ending = True
        self._tell(lambda: self.store.set(f"words/{self.rank}", text))
        self._tell(lambda: self.store.add("ended", 1))
        if self.rank == 0:
            self._final = _ended_sentence(0, text)
            self._tell(lambda: self._publish(""))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._tell(self._wait_for_readers)  # the store is in this process and ends with it

    def finishing(self) -> None:
        """The run is over; what remains is to leave together."""
        self._ending = True

    def close(self) -> None:
        """Stop; after every rank has reached `finishing`."""
        self._closed.set()
        self._exchange.join(2 * INTERVAL_S)

    def _run(self) -> None:
        """One exchange with the store a second."""
        judge = self._read_all() if self.rank == 0 else self._read_verdict()
        while not self._closed.wait(INTERVAL_S):
            self._count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(self._count))
                sentence = next(judge)
            except RuntimeError:  # the connection is gone, with the process that held the store
                sentence = _store_sentence()
            self._answered = time.monotonic()
            if sentence:
                self._end(sentence)
                return

    def _watch_store(self) -> None:
        """A request to a store whose process stands still, or whose machine is gone, may never return."""
        looked = time.monotonic()
        while not self._closed.wait(INTERVAL_S):
            now = time.monotonic()
            if now - looked > self._limit_now / 2:  # this process itself stood still: it cannot blame others
                self._answered = now
            looked = now
            if now - self._answered > self._limit_now + INTERVAL_S:
                self._end(_store_sentence())
                return

    def _end(self, sentence: str) -> None:
        if self._ending:
            return
        self.say(sentence)
        if self.rank == 0:
            time.sleep(2 * INTERVAL_S)  # the others read it from a store that may be in this process
        os._exit(ExitStatus.FAILED)

    def _read_all(self) -> Iterator[str]:
        """Rank 0: what the others' signs of life come to, each time it is asked; publishes it."""
        others = range(1, self.world_size)
        silence = _Silence(self.world_size - 1)
        announced = 0
        while True:
            beats = self._values([f"beat/{rank}" for rank in others])
            limit = self._limit()
            silent = [others[index] for index in silence.longer_than(limit, beats)]
            sentence = self._silent_sentence(silent, limit) if silent else ""
            if not sentence and self.store.add("ended", 0) > 0:
                announced += 1
                if announced > 2:  # where all ranks end by the same error, each tells it itself
                    sentence = self._first_ended()
            self._publish(sentence)
            yield sentence

    def _read_verdict(self) -> Iterator[str]:
        """Other ranks: rank 0's verdict, or that there is none any more."""
        silence = _Silence(1)
        while True:
            verdict = self.store.get("verdict")
            limit = self._limit()
            sentence = str(json.loads(verdict)[1])
            if not sentence and silence.longer_than(limit, [verdict]):
                sentence = self._silent_sentence([0], limit)
            yield sentence

    def _limit(self) -> float:
        if self.store.add("trouble", 0) > 0:
            self._limit_now = min(self.limit_s, TROUBLE_LIMIT_S)
        return self._limit_now

    def _publish(self, sentence: str) -> None:
        self.store.set("verdict", json.dumps([self._count, sentence or self._final]))

    def _values(self, keys: Sequence[str]) -> list[bytes]:
        """Empty where a key is not set yet."""
        if self.store.check(list(keys)):
            return self.store.multi_get(list(keys))
        return [self.store.get(key) if self.store.check([key]) else b"" for key in keys]

    def _silent_sentence(self, ranks: list[int], limit: float) -> str:
        places = self._values([f"where/{rank}" for rank in ranks])
        names = ", ".join(f"rank {rank} ({place.decode()})" for rank, place in zip(ranks, places, strict=True))
        verb = "has" if len(ranks) == 1 else "have"
        return (
            f"{names} {verb} given no sign of life for {limit:.0f} s: killed, out of memory, stopped, or without a "
            f"machine. {_ADVICE}"
        )

    def _first_ended(self) -> str:
        rank = next(rank for rank in range(self.world_size) if self.store.check([f"words/{rank}"]))
        return _ended_sentence(rank, self.store.get(f"words/{rank}").decode())

    def _wait_for_readers(self) -> None:
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline and self.store.add("ended", 0) < self.world_size:
            time.sleep(0.05)

    def _tell(self, message: Callable[[], object]) -> None:
        """Send a message to the store if it still answers."""

        def attempt() -> None:
            with contextlib.suppress(RuntimeError):
                message()

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(_LAST_WORDS_S)


def _ended_sentence(rank: int, text: str) -> str:
    return f"rank {rank} ended by an error of its own: {text}"


def _store_sentence() -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    who = "the launcher" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
    return f"{who} is gone or stands still: the run's store at {address} does not answer. {_ADVICE}"


class _Silence:
    """For how long each of several values has not changed."""

    def __init__(self, count: int) -> None:
        self._values: list[bytes | None] = [None] * count
        self._changed = [time.monotonic()] * count
        self._asked = time.monotonic()

    def longer_than(self, limit_s: float, values: list[bytes]) -> list[int]:
        """Indices of the values that have been the same for longer than `limit_s`."""
        now = time.monotonic()
        paused = now - self._asked > limit_s / 2  # this process itself stood still: it cannot blame others
        self._asked = now
        for index, value in enumerate(values):
            if paused or value != self._values[index]:
                self._values[index], self._changed[index] = value, now
        return [index for index, changed in enumerate(self._changed) if now - changed > limit_s]
