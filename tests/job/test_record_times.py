"""Of a few records spread over the job it is noted when what was done to them."""

import pytest

from vlmflow.job.record_times import RecordTimes


@pytest.mark.parametrize(("num_records", "max_records"), [(1000, 50), (49, 50), (51, 50), (7, 1)])
def test_no_more_than_so_many_and_from_everywhere(num_records, max_records):
    times = RecordTimes(num_records, max_records)
    for ordinal in range(num_records):
        times.fetched(ordinal, 1.0)
        times.sent(ordinal)
        times.answered(ordinal, {"times": {"finished": 0.5}})
    ordinals = [item["ordinal"] for item in times.as_list()]
    assert min(max_records, num_records) / 2 <= len(ordinals) <= max_records
    assert max(ordinals) + len(ordinals) + num_records / len(ordinals) >= num_records


def test_a_record_is_listed_once_it_has_its_outcome():
    times = RecordTimes(10, 10)
    times.fetched(3, 1.0)
    times.sent(3)
    assert times.as_list() == []
    times.answered(3, {})
    [item] = times.as_list()
    assert item["begun"] == 1.0 <= item["fetched"] <= item["sent"] <= item["answered"]
    assert item["engine"] == {}


def test_none_are_noted_where_none_are_wanted():
    times = RecordTimes(10, 0)
    times.answered(0, {})
    assert times.as_list() == []
