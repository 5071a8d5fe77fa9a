"""Scenes of coloured shapes on a 3x3 grid, and the questions one can ask about them.

A scene is drawn from a `random.Random`, so a seed names it for ever. Needs Pillow only: the demo
draws its images with this file, the trainer draws its training data with it.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 44),
    "blue": (31, 96, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 180),
    "orange": (245, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLACES = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)
TASKS = ("describe", "count", "colour", "shape", "exists")
MAX_SHAPES = 5
NOTHING = "nothing"  # the answer about an empty place

# Paper white to light grey: every colour stands out, and none is ever the background.
_BACKGROUNDS = ((255, 255, 255), (246, 246, 242), (235, 238, 242), (240, 236, 228), (228, 232, 228))


@dataclass(frozen=True, slots=True)
class Item:
    """One shape of a scene. Offsets and radius are in units of a cell's side."""

    place: int  # index into PLACES
    colour: str
    shape: str
    dx: float
    dy: float
    radius: float
    angle: float  # radians

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One to MAX_SHAPES items in reading order on a plain background."""

    items: tuple[Item, ...]
    background: tuple[int, int, int]

    def at(self, place: int) -> Item | None:
        return next((item for item in self.items if item.place == place), None)

    def draw(self, side: int = 288) -> Image.Image:
        """Draw the scene as a square RGB image of `side` pixels."""
        image = Image.new("RGB", (2 * side, 2 * side), self.background)  # halved: smooth edges
        pen = ImageDraw.Draw(image)
        cell = 2 * side / 3
        for item in self.items:
            x = (item.place % 3 + 0.5 + item.dx) * cell
            y = (item.place // 3 + 0.5 + item.dy) * cell
            _draw_shape(pen, item, x, y, item.radius * cell)
        return image.reduce(2)


@dataclass(frozen=True, slots=True)
class Question:
    task: str  # one of TASKS
    text: str
    answer: str
    evidence: tuple[int, ...]  # places of the items that the answer is read from


def draw_scene(rng: random.Random) -> Scene:
    """Make a scene of one to MAX_SHAPES shapes in different places."""
    items = []
    for place in sorted(rng.sample(range(9), rng.randint(1, MAX_SHAPES))):
        shape = rng.choice(SHAPES)
        # A square turned by 45 degrees would be a diamond; small tilts keep the names honest.
        tilt = rng.uniform(-0.2, 0.2)
        items.append(
            Item(
                place=place,
                colour=rng.choice(tuple(COLOURS)),
                shape=shape,
                dx=rng.uniform(-0.08, 0.08),
                dy=rng.uniform(-0.08, 0.08),
                radius=rng.uniform(0.31, 0.40),
                angle=tilt,
            )
        )
    return Scene(tuple(items), rng.choice(_BACKGROUNDS))


def ask(rng: random.Random, scene: Scene, task: str) -> Question:
    """Ask one question of a task. Answers are balanced where a guess could pay."""
    text, answer, evidence = _ASKERS[task](rng, scene)
    return Question(task, text, answer, tuple(item.place for item in evidence))


def held_out(seed: int, count: int) -> Iterator[tuple[Scene, Question]]:
    """Yield `count` scenes with one question each, the tasks in turn."""
    rng = random.Random(seed)
    for index in range(count):
        scene = draw_scene(rng)
        yield scene, ask(rng, scene, TASKS[index % len(TASKS)])


_Asked = tuple[str, str, list[Item]]  # question, answer, the items that the answer is read from


def _describe(rng: random.Random, scene: Scene) -> _Asked:
    text = rng.choice(("Describe the scene.", "Describe this image.", "What do you see?"))
    parts = [f"{_a(item.name)} at the {PLACES[item.place]}" for item in scene.items]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return text, f"{listed}.", list(scene.items)


def _count(rng: random.Random, scene: Scene) -> _Asked:
    kind = rng.choice(("all", "colour", "shape"))
    # Half the questions ask for something that is there, else nearly all answers would be 0.
    item = rng.choice(scene.items) if rng.random() < 0.6 else None
    if kind == "all":
        text = rng.choice(("How many shapes are there?", "Count the shapes."))
        found = list(scene.items)
    elif kind == "colour":
        colour = item.colour if item else rng.choice(tuple(COLOURS))
        text = f"How many {colour} shapes are there?"
        found = [other for other in scene.items if other.colour == colour]
    else:
        shape = item.shape if item else rng.choice(SHAPES)
        text = f"How many {_plural(shape)} are there?"
        found = [other for other in scene.items if other.shape == shape]
    return text, str(len(found)), found


def _colour(rng: random.Random, scene: Scene) -> _Asked:
    place, item = _pick_place(rng, scene)
    text = rng.choice(
        (f"What colour is the shape at the {place}?", f"Which colour is at the {place}?")
    )
    return text, item.colour if item else NOTHING, [item] if item else []


def _shape(rng: random.Random, scene: Scene) -> _Asked:
    place, item = _pick_place(rng, scene)
    text = rng.choice((f"Which shape is at the {place}?", f"What is the shape at the {place}?"))
    return text, item.shape if item else NOTHING, [item] if item else []


def _exists(rng: random.Random, scene: Scene) -> _Asked:
    present = {item.name for item in scene.items}
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        name = item.name
    else:
        # Near misses: one half of the name is in the scene, so both halves must be read.
        near = [f"{item.colour} {shape}" for shape in SHAPES]
        near += [f"{colour} {item.shape}" for colour in COLOURS]
        name = rng.choice([n for n in near if n not in present])
    text = rng.choice((f"Is there {_a(name)}?", f"Does {_a(name)} exist here?"))
    found = [other for other in scene.items if other.name == name]
    return text, "yes" if found else "no", found


_ASKERS: dict[str, Callable[[random.Random, Scene], _Asked]] = {
    "describe": _describe,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "exists": _exists,
}


def _pick_place(rng: random.Random, scene: Scene) -> tuple[str, Item | None]:
    if rng.random() < 0.85:
        item = rng.choice(scene.items)
        return PLACES[item.place], item
    place = rng.randrange(9)
    return PLACES[place], scene.at(place)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("ss") else f"{shape}s"


def _draw_shape(pen: ImageDraw.ImageDraw, item: Item, x: float, y: float, radius: float) -> None:
    fill = COLOURS[item.colour]
    if item.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    if item.shape == "square":
        corners = [(1.25 * radius, math.pi / 4 + k * math.pi / 2) for k in range(4)]
    elif item.shape == "triangle":
        corners = [(1.15 * radius, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)]
    elif item.shape == "star":
        corners = [
            ((1.1 if k % 2 == 0 else 0.45) * radius, -math.pi / 2 + k * math.pi / 5)
            for k in range(10)
        ]
    else:  # cross: a plus sign of two bars
        arm, half = radius, 0.33 * radius
        points = [
            (-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half),
            (half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half),
        ]  # fmt: skip
        corners = [(math.hypot(px, py), math.atan2(py, px)) for px, py in points]
    pen.polygon(
        [(x + r * math.cos(a + item.angle), y + r * math.sin(a + item.angle)) for r, a in corners],
        fill=fill,
    )
