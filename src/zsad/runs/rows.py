"""Predictions as rows of a table, for data engines: one schema, whichever engine holds it.

| column | content |
|---|---|
| path | of the image, as it was named |
| score | in [0, 1], higher is more anomalous |
| verdict, p_value | by the model's calibration; null without |
| error | why there is no result, else null |
| height, width | of the upright image, in pixels |
| grid, grid_shape | logits (L, h, w) in half precision as little-endian bytes, and that shape |
| map_spec | JSON: how the grid becomes a map |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zsad.errors import ConfigError, DataError
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction
from zsad.runs.store import as_stored

if TYPE_CHECKING:
    import pyarrow

SPARK_SCHEMA = (
    "path string, score double, verdict string, p_value double, error string, height int, width int, "
    "grid binary, grid_shape array<int>, map_spec string"
)
"""The columns as Spark's `mapInPandas(function, schema)` takes them."""

COLUMNS = tuple(part.split()[0] for part in SPARK_SCHEMA.split(", "))


def arrow_schema() -> pyarrow.Schema:
    """The columns as Arrow types.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    arrow = need_pyarrow()
    types = {
        "string": arrow.string(),
        "double": arrow.float64(),
        "int": arrow.int32(),
        "binary": arrow.binary(),
        "array<int>": arrow.list_(arrow.int32()),
    }
    pairs = (part.split() for part in SPARK_SCHEMA.split(", "))
    return arrow.schema([(name, types[kind]) for name, kind in pairs])


def need_pyarrow() -> Any:
    """The package pyarrow.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("this needs pyarrow, get it with: pip install 'zsad[scale]'") from error
    return pyarrow


def result_row(prediction: Prediction) -> dict[str, Any]:
    """Return the row of a prediction: its serialised form, with the grid as bytes."""
    values = prediction.to_dict()
    height, width = values["size"]
    return {
        **{name: values.get(name) for name in ("score", "verdict", "p_value")},
        "path": values["source"],
        "error": None,
        "height": height,
        "width": width,
        "grid": as_stored(prediction.grid).tobytes(),
        "grid_shape": list(prediction.grid.shape),
        "map_spec": prediction.spec.model_dump_json(),
    }


def error_row(path: str | None, message: str) -> dict[str, Any]:
    """The row of an image that cannot be used."""
    return {**dict.fromkeys(COLUMNS), "path": path, "error": message}


def prediction_of(row: Mapping[str, Any]) -> Prediction:
    """The prediction of a row without error, with a map that can be rebuilt.

    Raises:
        DataError: the row has an error, or lacks columns.
    """
    error = row.get("error")
    if isinstance(error, str):
        raise DataError(f"the row of {row.get('path')} has no result: {error}")
    try:
        shape = tuple(int(side) for side in row["grid_shape"])
        grid = np.frombuffer(row["grid"], dtype="<f2").reshape(shape).astype(np.float32)
        values = {
            "source": row["path"],
            "size": (row["height"], row["width"]),
            "score": row["score"],
            "verdict": row["verdict"],
            "p_value": _number(row["p_value"]),
        }
        return Prediction.from_dict(values, grid=grid, spec=MapSpec.model_validate_json(row["map_spec"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a row of predictions cannot be read ({error}), expected the columns {', '.join(COLUMNS)}"
        ) from error


def _number(value: Any) -> float | None:
    """A number or nothing, which pandas tells as NaN."""
    return None if value is None or math.isnan(value) else float(value)
