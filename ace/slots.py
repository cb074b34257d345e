"""Continuous batching: a pool of slots in which images are attacked together, each at its own iteration."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ace.attacks import Attack, State
from ace.memory import peak_memory
from ace.noise import draw, generator
from ace.objective import Objective

ROW_GROUP = 4


def fixed_batch(slots: int) -> int:
    """Rows of a batch that always has the same shape, for so many slots.

    Matrix products take rows in groups of four, and the last few by other kernels: with full groups the place of a row
    makes no difference to its rounding.
    """
    return slots if slots == 1 else math.ceil(slots / ROW_GROUP) * ROW_GROUP


def in_slots(
    slots: int, fixed_shape: bool, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Apply a batch function to at most ``slots`` rows of the inputs at a time, filled up to `fixed_batch` or not."""
    outputs = []
    for chunk in zip(*(values.split(slots) for values in inputs), strict=True):
        count = len(chunk[0])
        missing = fixed_batch(slots) - count if fixed_shape else 0
        padded = [torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) for rows in chunk]
        outputs.append([values[:count] for values in function(*padded)])
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


@dataclass(eq=False)
class Query:
    """One image on its way through the attack.

    Attributes:
        id: identity of the image; its noise depends on it.
        image: the original, shape (C, H, W), in [0, 1].
        target: target class.
        prediction: class decided for the original.
        label: true class, if known.
        p_before: probability of the target for the original.
        allowed: weight of each pixel's gradient, in [0, 1], shape (1, H, W): 0 where the image must stay as it is; None
            for 1 everywhere.
        iterations, unet_forwards, unet_backwards, seconds, peak_memory: the cost so far, see `ace.record.Record`.
        repairs: how many times the attack went on because the counterfactual as saved was not flipped.
        pre_explanation: the result of the attack.
        state: what the attack remembered at its end, see `ace.attacks.Attack.start`.
        healthy: whether every loss and gradient was finite.
    """

    id: str
    image: Tensor
    target: int
    prediction: int
    label: int | None
    p_before: float
    allowed: Tensor | None = field(default=None, repr=False)
    iterations: int = 0
    unet_forwards: int = 0
    unet_backwards: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    repairs: int = 0
    pre_explanation: Tensor | None = None
    state: State = field(default_factory=dict, repr=False)
    healthy: bool = True
    entered: int = field(default=0, init=False)
    stream: torch.Generator = field(init=False, repr=False)

    def stage(self, name: str) -> str:
        """The name of a stage's noise: every repair draws anew."""
        return f"{name} {self.repairs}" if self.repairs else name


class SlotPool:
    """Attacks up to ``slots`` images at a time; one that is finished leaves, the next one enters.

    Args:
        objective: what is minimised.
        attack: the update rule.
        slots: number of images iterated together.
        fixed_shape: always compute all slots, free ones included, and fill up to `fixed_batch`, so that kernels see one
            batch shape and the result of an image has the same bytes whatever its company and its slot.
        seed: seed of the noise.
        listeners: called after every iteration, to show progress, or to stop.
    """

    def __init__(
        self,
        objective: Objective,
        attack: Attack,
        slots: int,
        fixed_shape: bool,
        seed: int,
        listeners: list[Callable[[], None]] | None = None,
    ) -> None:
        self.objective, self.attack, self.fixed_shape, self.seed = objective, attack, fixed_shape, seed
        self.queries: list[Query | None] = [None] * slots
        self.waiting: deque[Query] = deque()
        self._finished: list[Query] = []  # what is finished outlives an error in a later iteration
        self.listeners = [] if listeners is None else listeners

    @property
    def progress(self) -> float:
        """Work done on the images in the slots, in images."""
        done = sum(query.iterations - query.entered for query in self.queries if query is not None)
        return done / self.attack.iterations

    @property
    def busy(self) -> bool:
        """Whether an image is in a slot or waits for one."""
        return any(self.queries) or bool(self.waiting)

    def add(self, query: Query) -> None:
        """Queue an image; it enters when a slot is free, and begins at its pre-explanation if it has one."""
        self._begin(query)
        self.waiting.append(query)

    def _begin(self, query: Query) -> None:
        query.entered, query.healthy = query.iterations, True
        query.stream = generator(self.seed, query.id, query.stage("attack"))

    def clear(self) -> None:
        """Forget all images."""
        self.queries = [None] * len(self.queries)
        self.waiting.clear()
        self._finished = []

    def resize(self, slots: int) -> None:
        """Go on with another number of slots: the images under way begin anew, ahead of those that wait."""
        interrupted = [query for query in self.queries if query is not None]
        self.queries = [None] * slots
        for query in reversed(interrupted):
            query.iterations = query.entered
            self._begin(query)
            self.waiting.appendleft(query)
        for name in ("image", "original", "allowed", "target", "iteration", "healthy", "reached", "state", "ahead"):
            vars(self).pop(name, None)  # their memory is what was missing

    def run(self, drain: bool) -> list[Query]:
        """Iterate while every slot is busy, or with ``drain`` until no image is left; return the finished ones."""
        while True:
            self._fill()
            if not any(self.queries) or (not drain and None in self.queries):
                finished, self._finished = self._finished, []
                return finished
            started, passes = time.perf_counter(), self._passes()
            active = [query for query in self.queries if query is not None]
            self._iterate()
            self.ahead = self._noise()  # while the device still computes
            for query in active:
                query.iterations += 1
            self._retire()  # waits for the device when an image is finished
            self._account(active, time.perf_counter() - started, passes)
            for listener in self.listeners:
                listener()

    def _fill(self) -> None:
        for slot, occupant in enumerate(self.queries):
            if occupant is None and self.waiting:
                self._enter(slot, self.waiting[0])

    def _enter(self, slot: int, query: Query) -> None:
        start = query.image if query.pre_explanation is None else query.pre_explanation
        state = query.state or {name: values[0] for name, values in self.attack.start(query.image[None]).items()}
        if not any(self.queries):
            self._allocate(query.image, state)
        self.queries[slot] = self.waiting.popleft()  # not before there was memory for it
        if self.ahead is not None:  # of an image that has left
            self.ahead[:, slot] = self._draw([query])[:, 0]
        self.image[slot], self.original[slot], self.target[slot] = start, query.image, query.target
        self.allowed[slot] = 1 if query.allowed is None else query.allowed
        self.iteration[slot], self.healthy[slot], self.reached[slot] = 0, True, 0
        for name, values in state.items():
            self.state[name][slot] = values

    def _allocate(self, image: Tensor, state: State) -> None:
        rows = fixed_batch(len(self.queries)) if self.fixed_shape else len(self.queries)
        self.original = image.new_zeros(rows, *image.shape)
        self.image = self.original.clone()
        self.allowed = image.new_ones(rows, 1, *image.shape[1:])
        self.target = torch.zeros(rows, dtype=torch.long, device=image.device)
        self.iteration = torch.zeros(rows, device=image.device)
        self.healthy = torch.ones(rows, dtype=torch.bool, device=image.device)
        self.reached = torch.zeros(rows, dtype=torch.long, device=image.device)
        self.state = {name: values.new_zeros(rows, *values.shape) for name, values in state.items()}
        self.ahead: Tensor | None = None  # noise of the next iteration

    def _iterate(self) -> None:
        rows = self._rows()
        image, original = self.image[rows], self.original[rows]
        factor = self.objective.distance.factor(self.iteration[rows], self.attack.iterations)
        noise, self.ahead = self._noise() if self.ahead is None else self.ahead, None
        noise = None if noise is None else noise[:, rows]
        evaluation = self.objective.evaluate(image, original, self.target[rows], factor, noise)
        state = {name: values[rows] for name, values in self.state.items()}
        gradient = self.allowed[rows] * evaluation.gradient
        updated = self.attack.update(image, original, gradient, state)
        if stop := self.attack.stop:
            self.reached[rows] = (self.reached[rows] + 1) * (evaluation.probability >= stop.probability)
            done = self.reached[rows] >= stop.draws
            updated = torch.where(done[:, None, None, None], image, updated)  # what was judged is what is kept
        self.image[rows] = updated
        for name, values in state.items():
            self.state[name][rows] = values
        self.iteration[rows] += 1
        finite = evaluation.gradient.isfinite().flatten(1).all(1) & evaluation.class_loss.isfinite()
        self.healthy[rows] &= finite

    def _rows(self) -> slice | Tensor:
        """Which rows are computed: all of them, or those that are taken."""
        if self.fixed_shape or all(self.queries):
            return slice(None)
        taken = [slot for slot, query in enumerate(self.queries) if query is not None]
        return torch.tensor(taken, device=self.image.device)

    def _noise(self) -> Tensor | None:
        """Fresh noise for the filter in every row."""
        return self._draw([*self.queries, *[None] * (len(self.image) - len(self.queries))])

    def _draw(self, queries: Sequence[Query | None]) -> Tensor | None:
        """Fresh noise for some rows, each image's from its own stream; zeros where there is none."""
        diffusion_filter = self.objective.diffusion_filter
        if diffusion_filter is None or not diffusion_filter.stochastic:
            return None
        streams = [None if query is None else query.stream for query in queries]
        return draw(streams, diffusion_filter.steps, self.image.shape[1:], self.image.device)

    def _passes(self) -> tuple[int, int]:
        diffusion_filter = self.objective.diffusion_filter
        if diffusion_filter is None:
            return 0, 0
        return diffusion_filter.passes.forwards, diffusion_filter.passes.backwards

    def _account(self, active: list[Query], seconds: float, before: tuple[int, int]) -> None:
        """Book the cost of an iteration: every image pays its own passes and an equal share of the time."""
        forwards, backwards = (now - then for now, then in zip(self._passes(), before, strict=True))
        for query in active:
            query.unet_forwards += forwards
            query.unet_backwards += backwards
            query.seconds += seconds / len(active)

    def _retire(self) -> None:
        """Free the slots of the images that are finished."""
        stop = self.attack.stop
        done = [False] * len(self.queries) if stop is None else (self.reached >= stop.draws).tolist()
        for slot, query in enumerate(self.queries):
            if query is not None and (done[slot] or query.iterations - query.entered == self.attack.iterations):
                # Where the memory does not suffice for these, the image is still in its slot, as it was.
                image, state = self.image[slot].clone(), {name: kept[slot].clone() for name, kept in self.state.items()}
                query.pre_explanation, query.state, query.healthy = image, state, bool(self.healthy[slot])
                query.peak_memory = peak_memory(image.device)
                self._finished.append(query)
                self.queries[slot] = None
