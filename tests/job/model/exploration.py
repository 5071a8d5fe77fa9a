"""Every way in which workers can take turns, die and lose answers, each looked at once.

Between any two requests of a worker the others may make any number of theirs, so a worker that is
paused, for a moment or for ever, is among the ways. A worker may die before any request: that is
after the last one too, whether or not it had the answer. The answer to a write may be lost after it
was carried out; the client repeats it then, at any later time.

Two ways that lead to the same bucket, with workers that have had the same answers, go on alike and
are looked at once: that keeps the number finite and small, and leaves nothing out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.job.model.simulated_s3 import (
    LOST,
    Answer,
    Client,
    Objects,
    OutOfAnswers,
    Put,
    Request,
    client_of,
)

# Of a worker's name and its client; returns when the worker is through.
Program = Callable[[str, Client], None]


@dataclass(frozen=True, slots=True)
class End:
    """A worker that has come to its end: by itself, or by an error."""

    error: Exception | None = None


class Worker:
    """One life of a worker, up to some answer. The same answers give the same object."""

    __slots__ = ("_answers", "_next", "_program", "name", "wants")

    def __init__(self, program: Program, name: str, answers: tuple[Answer, ...] = ()) -> None:
        self._program = program
        self._answers = answers
        self._next: dict[Answer, Worker] = {}
        self.name = name
        self.wants: Request | End
        try:
            program(name, client_of(answers))
            self.wants = End()
        except OutOfAnswers as stop:
            self.wants = stop.request
        except Exception as error:
            self.wants = End(error)

    def told(self, answer: Answer) -> "Worker":
        if answer not in self._next:
            self._next[answer] = Worker(self._program, self.name, (*self._answers, answer))
        return self._next[answer]


@dataclass(frozen=True, slots=True)
class State:
    objects: Objects
    workers: tuple[Worker, ...]
    deaths: tuple[int, ...]  # of each worker, so far
    losses: int  # answers lost so far


@dataclass(slots=True)
class Explored:
    """What was looked at."""

    num_states: int = 0
    num_buckets: int = 0  # different contents
    num_ends: int = 0  # states in which every worker had come to its end
    num_lives: int = 0  # different lists of answers that a worker has had


class ViolationError(AssertionError):
    """A state that must not be, and the way to it."""


@dataclass(slots=True)
class Explorer:
    """Looks at all states that programs can reach. Raises ViolationError."""

    programs: tuple[Program, ...]
    max_deaths: int  # of all workers together
    max_losses: int
    check_always: Callable[[Objects], None]
    check_when_one_is_through: Callable[[Objects], None]
    _lives: dict[tuple[int, int], Worker] = field(default_factory=dict)
    _checked: set[Objects] = field(default_factory=set)
    _checked_through: set[Objects] = field(default_factory=set)

    def explore(self) -> Explored:
        found = Explored()
        begin = State(
            Objects(),
            tuple(self._life(number, 0) for number in range(len(self.programs))),
            (0,) * len(self.programs),
            0,
        )
        came_from: dict[State, tuple[State, str] | None] = {begin: None}
        left = [begin]
        while left:
            state = left.pop()
            try:
                found.num_ends += self._check(state)
            except AssertionError as error:
                way = "\n".join(_way_to(state, came_from))
                raise ViolationError(f"{error}\nafter\n{way}") from error
            for what, after in self._steps(state):
                if after not in came_from:
                    came_from[after] = (state, what)
                    left.append(after)
        found.num_states = len(came_from)
        found.num_buckets = len(self._checked)
        found.num_lives = len({worker for state in came_from for worker in state.workers})
        return found

    def _life(self, number: int, deaths: int) -> Worker:
        key = (number, deaths)
        if key not in self._lives:
            name = f"{'abc'[number]}{deaths}"
            self._lives[key] = Worker(self.programs[number], name)
        return self._lives[key]

    def _check(self, state: State) -> bool:
        """Return whether all workers are through."""
        if state.objects not in self._checked:
            self._checked.add(state.objects)
            self.check_always(state.objects)
        ends = [worker.wants for worker in state.workers if isinstance(worker.wants, End)]
        for end in ends:
            assert end.error is None, f"a worker ended with {end.error!r}"
        if ends and state.objects not in self._checked_through:
            self._checked_through.add(state.objects)
            self.check_when_one_is_through(state.objects)
        return len(ends) == len(state.workers)

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        for number, worker in enumerate(state.workers):
            wants = worker.wants
            if isinstance(wants, End):
                continue
            objects, answer = state.objects.carry_out(wants)
            yield (
                f"{worker.name}: {_shown(wants)} -> {_shown_answer(answer)}",
                self._after(state, number, objects, worker.told(answer)),
            )
            if isinstance(wants, Put) and state.losses < self.max_losses:
                after = self._after(state, number, objects, worker.told(LOST), loss=1)
                yield f"{worker.name}: {_shown(wants)} -> (the answer is lost)", after
            if sum(state.deaths) < self.max_deaths:
                next_life = self._life(number, state.deaths[number] + 1)
                after = self._after(state, number, state.objects, next_life, death=1)
                yield f"{worker.name}: dies", after

    @staticmethod
    def _after(
        state: State,
        number: int,
        objects: Objects,
        worker: Worker,
        *,
        death: int = 0,
        loss: int = 0,
    ) -> State:
        workers, deaths = list(state.workers), list(state.deaths)
        workers[number] = worker
        deaths[number] += death
        return State(objects, tuple(workers), tuple(deaths), state.losses + loss)


def _way_to(state: State, came_from: dict[State, tuple[State, str] | None]) -> list[str]:
    steps = []
    while (step := came_from[state]) is not None:
        state, what = step
        steps.append(what)
    return steps[::-1]


def _shown(request: Request) -> str:
    name = type(request).__name__.lower()
    return f"{name} {getattr(request, 'key', None) or getattr(request, 'prefix', '')}"


def _shown_answer(answer: Answer) -> str:
    return f"{len(answer)} bytes" if isinstance(answer, bytes) else str(answer)
