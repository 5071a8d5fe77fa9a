from importlib.util import find_spec


def test_pipelines_are_compiled_where_there_is_neither_torch_nor_airflow():
    assert find_spec("kfp") is not None
    assert [name for name in ("torch", "transformers", "airflow") if find_spec(name)] == []
