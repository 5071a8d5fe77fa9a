"""A peer is brought to its best setting with no more tries than that takes."""

from benchmarks.cpu_engines import best_setting, describe

SIZES = tuple({"batch_size": size} for size in (4, 8, 16, 32))


def climb(seconds: dict[int, float]) -> tuple[dict, dict[str, float]]:
    return best_setting(SIZES, lambda setting: seconds[setting["batch_size"]])


def test_the_climb_ends_after_the_first_step_down():
    best, tried = climb({4: 9.0, 8: 5.0, 16: 6.0})
    assert best == {"batch_size": 8}
    assert list(tried) == ["batch_size 4", "batch_size 8", "batch_size 16"]


def test_the_last_setting_may_be_the_best():
    assert climb({4: 9.0, 8: 5.0, 16: 4.0, 32: 3.0})[0] == {"batch_size": 32}


def test_a_single_setting_is_not_tried():
    def never(_: dict) -> float:
        raise AssertionError

    assert best_setting(({},), never) == ({}, {})
    assert describe({}) == "as it comes"
