"""The generator says what it draws, and the questions' answers follow from the scene alone."""

import random

import numpy as np
import pytest

from examples.shapes.scenes import (
    COLOURS,
    MAX_SHAPES,
    NOTHING,
    PLACES,
    TASKS,
    ask,
    draw_scene,
    held_out,
)


def test_a_seed_names_a_scene_for_ever():
    one, two = draw_scene(random.Random(5)), draw_scene(random.Random(5))
    assert one == two
    assert one.draw(96).tobytes() == two.draw(96).tobytes()
    assert one != draw_scene(random.Random(6))


def test_every_item_is_drawn_in_its_own_cell_in_its_own_colour():
    rng = random.Random(1)
    for _ in range(50):
        scene = draw_scene(rng)
        assert 1 <= len(scene.items) <= MAX_SHAPES
        pixels = np.asarray(scene.draw(300)).astype(int)
        for place in range(9):
            row, column = divmod(place, 3)
            cell = pixels[100 * row : 100 * (row + 1), 100 * column : 100 * (column + 1)]
            item = scene.at(place)
            middle = cell[50, 50]
            if item is None:
                assert (np.abs(cell - scene.background).max(axis=-1) < 8).all()
            else:
                assert np.abs(middle - COLOURS[item.colour]).max() < 8


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_scene(task):
    rng = random.Random(2)
    for _ in range(300):
        scene = draw_scene(rng)
        question = ask(rng, scene, task)
        found = [item for item in scene.items if item.place in question.evidence]
        if task == "describe":
            assert all(f"{i.name} at the {PLACES[i.place]}" in question.answer for i in scene.items)
        elif task == "count":
            assert question.answer == str(len(found))
        elif task == "exists":
            assert question.answer == ("yes" if found else "no")
            assert all(item.name in question.text for item in found)
        else:
            named = getattr(found[0], task) if found else NOTHING
            assert question.answer == named
            assert not found or PLACES[found[0].place] in question.text


def test_yes_and_no_are_about_as_frequent():
    answers = [q.answer for _, q in held_out(3, 2000) if q.task == "exists"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
