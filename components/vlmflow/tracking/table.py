"""Tables of a run page: rows as a JSON artifact, with pictures beside it.

MLflow's own `log_table` appends to a table that is there, sends each picture twice and one after
the other, and refuses a column in which one row has none. A table of ours is written whole.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun

_TAG = "mlflow.loggedArtifacts"  # by which the page finds a run's tables
Row = dict[str, Any]  # a value of bytes is a PNG or JPEG file


def write_table(folder: Path, name: str, rows: list[Row]) -> None:
    """Write `<name>.json` and its pictures; the rows have the same columns."""
    columns = list(rows[0]) if rows else []
    data = [
        [_cell(folder, f"{name}/{number:04d}-{key}", row[key]) for key in columns]
        for number, row in enumerate(rows)
    ]
    content = {"columns": columns, "data": data}
    (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def log_table(run: "MlflowRun", name: str, rows: list[Row]) -> None:
    """Log one table with its pictures; nothing where there are no rows."""
    if not rows:
        return
    with tempfile.TemporaryDirectory(prefix="vlmflow-") as place:
        write_table(Path(place), name, rows)
        run.log_files(Path(place))
    show_tables(run, [name])


def show_tables(run: "MlflowRun", names: list[str]) -> None:
    """Let the run's page list tables that were logged."""
    tags = run.client.get_run(run.run_id).data.tags
    known: list[dict[str, str]] = json.loads(tags.get(_TAG, "[]"))
    new = [{"path": f"{name}.json", "type": "table"} for name in names]
    run.set_tags({_TAG: json.dumps(known + [item for item in new if item not in known])})


def _cell(folder: Path, name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    ending = "png" if value.startswith(b"\x89PNG") else "jpg"
    path = f"table_images/{name}.{ending}"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(value)
    # Small as it is, it is its own preview.
    return {"type": "image", "filepath": path, "compressed_filepath": path}
