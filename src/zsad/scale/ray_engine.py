"""More images than one machine holds: the same predictor as anywhere, dealt out to workers by Ray Data.

Pictures are read and decoded by tasks on processors while models run on their devices, one a worker. What comes back
are small rows in any order: the process that asks writes them, each as soon as it is there, so that a kill loses no row
that was said to be finished.

Every name must mean the same on all machines: paths of images on a shared file system or addresses of an object
store, and the model's. zsad has to be installed on all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from zsad import errors
from zsad.errors import ConfigError, EngineError, ImageError, ZsadError
from zsad.images.picture import Preprocess
from zsad.nn.maps import MapSpec
from zsad.predict.pipeline import Decoded
from zsad.predict.prediction import Prediction
from zsad.predict.roi import RegionOfInterest
from zsad.runs.rows import need_pyarrow
from zsad.runs.store import as_stored, restore
from zsad.scale.predictor import BatchPredictor, Loading, decode_picture, is_plain, source_of
from zsad.scale.sources import ImageFiles, ParquetFiles

_ROWS = 16  # images a task: what a worker gives back at once, and what its death costs
_ANSWER = ["source", "row", "grid", "shape", "spec", "error"]
_BLOCK_BYTES = 8 << 20  # of decoded pictures


@dataclass(frozen=True, slots=True)
class Cluster:
    """Address and size of a Ray cluster.

    Attributes:
        address: of a running cluster, such as ray://head:10001 or auto; None: one on this machine, for this run.
        workers: copies of the model; None: one a GPU, or without GPUs one a machine.
        cores: that a worker on a processor is given; its model may have more threads.
    """

    address: str | None = None
    workers: int | None = None
    cores: int = 1


def predict_with_ray(
    images: ImageFiles | ParquetFiles,
    loading: Loading,
    preprocess: Preprocess,
    *,
    cluster: Cluster,
    images_a_pass: int | None = None,
) -> Iterator[tuple[str, Prediction | ZsadError]]:
    """Yields name and prediction, or what is wrong, of each image, in any order.

    Args:
        images: what is to be scored.
        loading: the model, as workers load it; its device is "cpu", or one GPU a worker.
        preprocess: of that model.
        cluster: where, and on how many workers.
        images_a_pass: None: what suits the device.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: no cluster at the address, or it broke down.
        ZsadError: what a worker says of the model.
    """
    ray = need_ray()
    with joined_cluster(ray, cluster), _quiet(ray), ray_errors(ray):
        gpus = float(ray.cluster_resources().get("GPU", 0)) if loading.device != "cpu" else 0.0
        machines = sum(1 for node in ray.nodes() if node["Alive"])
        workers = cluster.workers or int(gpus) or machines
        items = images.items(_ROWS)
        table = need_pyarrow().table({"item": [json.dumps(item) for item in items]})
        resize = preprocess.to_dict() if is_plain(loading.options) else None
        decode = partial(_decoded, images=images, preprocess=resize)
        rows = ray.data.from_arrow([table.slice(index, 1) for index in range(len(items))])
        # Fractions, so that decoding always finds room beside the workers.
        pictures = rows.map_batches(decode, batch_size=1, batch_format="pyarrow", num_cpus=0.25)
        results = pictures.map_batches(
            _Worker,
            fn_constructor_kwargs={"loading": loading, "images_a_pass": images_a_pass},
            batch_size=None,
            batch_format="pyarrow",
            num_gpus=1 if gpus else None,
            num_cpus=None if gpus else 0.5 * cluster.cores,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from (_result(row, loading.region) for row in block.to_pylist())


def need_ray(option: str = "--engine ray") -> Any:
    """Return the package ray, with its data sets; `option` is what it is needed for.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"{option} needs Ray, get it with: pip install 'zsad[scale]'") from error
    return ray


def _decoded(
    batch: Any, *, images: ImageFiles | ParquetFiles, preprocess: dict[str, Any] | None
) -> Iterator[Any]:
    """Tables of pictures for a table of items, on whatever processor is free: decoded, or without preprocessing raw."""
    ready = None if preprocess is None else Preprocess.from_dict(preprocess)
    for item in batch.column("item").to_pylist():
        for named in images.read(json.loads(item), _ROWS):
            rows = [
                _raw_row(name, image)
                if ready is None
                else _picture_row(name, decode_picture(name, image, preprocess=ready))
                for name, image in named
            ]
            yield need_pyarrow().Table.from_pylist(rows, schema=_picture_schema())


def _picture_schema() -> Any:
    arrow = need_pyarrow()
    numbers = [(name, arrow.int32()) for name in ("side", "height", "width")]
    contents = [(name, arrow.large_binary()) for name in ("pixels", "content")]
    return arrow.schema([("source", arrow.string()), ("error", arrow.string()), *contents, *numbers])


def _picture_row(name: str, picture: Decoded | ZsadError) -> dict[str, Any]:
    source = json.dumps(name)  # a file's name may be no valid UTF-8, which Arrow refuses
    if isinstance(picture, ZsadError):
        return {"source": source, "error": json.dumps(str(picture))}
    image, (height, width) = picture.image, picture.size
    return {
        "source": source,
        "pixels": image.tobytes(),
        "side": image.width,
        "height": height,
        "width": width,
    }


def _raw_row(name: str, image: Any) -> dict[str, Any]:
    """Return the source that the worker decodes itself: a path is read there."""
    try:
        source = source_of(name, image)
    except ImageError as error:
        return _picture_row(name, error)
    return {"source": json.dumps(name), "content": source if isinstance(source, bytes) else None}


class _Worker:
    """One copy of the model, in a process of its own, fed with decoded pictures."""

    def __init__(self, *, loading: Loading, images_a_pass: int | None) -> None:
        self.predictor = BatchPredictor.of(loading, images_a_pass=images_a_pass)

    def __call__(self, batch: Any) -> Any:
        columns: dict[str, list[Any]] = {name: [] for name in _ANSWER}
        try:
            _ = self.predictor.detector
        except ZsadError as error:  # as a row: Ray wraps what is raised, in another way with each version
            fatal = {"source": json.dumps(None), "error": json.dumps([type(error).__name__, str(error)])}
            return _answer({name: [fatal.get(name)] for name in _ANSWER})
        for name, outcome in self.predictor.predictions(_pictures(batch.to_pylist())):
            done = None if isinstance(outcome, ZsadError) else outcome
            columns["source"].append(json.dumps(name))
            columns["row"].append(done and json.dumps(done.to_dict()))
            columns["grid"].append(done and as_stored(done.grid).tobytes())
            columns["shape"].append(done and json.dumps(done.grid.shape))
            columns["spec"].append(done and done.spec.model_dump_json())
            columns["error"].append(None if done else json.dumps(str(outcome)))
        return _answer(columns)


def _answer(columns: dict[str, list[Any]]) -> Any:
    """Return the columns of `_ANSWER` as a pyarrow table."""
    arrow = need_pyarrow()
    kinds = [arrow.binary() if name == "grid" else arrow.string() for name in _ANSWER]
    arrays = [arrow.array(columns[name], kind) for name, kind in zip(_ANSWER, kinds, strict=True)]
    return arrow.table(arrays, names=_ANSWER)


def _pictures(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Decoded | ZsadError | bytes | str]]:
    for row in rows:
        name = json.loads(row["source"])
        if row["error"] is not None:
            yield name, ImageError(json.loads(row["error"]))
            continue
        if row["pixels"] is None:
            yield name, name if row["content"] is None else row["content"]
            continue
        content, width = row["pixels"], row["side"]
        image = Image.frombytes("RGB", (width, len(content) // (3 * width)), content)
        yield name, Decoded(image, (row["height"], row["width"]))


def _result(row: Mapping[str, Any], region: RegionOfInterest | None) -> tuple[str, Prediction | ZsadError]:
    name = json.loads(row["source"])
    if name is None:  # the model cannot be loaded there
        kind, message = json.loads(row["error"])
        raise getattr(errors, kind, EngineError)(message)
    if row["error"] is not None:
        return name, ImageError(json.loads(row["error"]))
    grids = np.frombuffer(row["grid"], "<f2").reshape(1, *json.loads(row["shape"]))
    spec = MapSpec.model_validate_json(row["spec"])
    return name, restore({**json.loads(row["row"]), "grid": 0}, grids, spec, region=region)


@contextmanager
def joined_cluster(ray: Any, cluster: Cluster) -> Iterator[None]:
    """Within a cluster: one that this process has joined already, that at the address, or one for this run."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if cluster.address is None:
        # One for decoding, however few the machine has: Ray counts processors, it does not bind to them.
        cores = 1 + (cluster.workers or 1) * cluster.cores
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
    else:
        options["address"] = cluster.address
    try:
        ray.init(**options)
    except (
        Exception
    ) as error:  # Ray raises nearly anything here, a bare Exception where a start takes too long
        where = "on this machine" if cluster.address is None else f"at {cluster.address}"
        raise EngineError(
            f"no Ray cluster {where} ({_short(error)}): check --address, or run `ray start`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray Data's settings for this run: no bars or remarks, small blocks; the process gets its own back."""
    log = logging.getLogger("ray.data")
    level = log.level
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK_BYTES,
    }
    before = {name: getattr(context, name) for name in settings if hasattr(context, name)}
    for name in before:
        setattr(context, name, settings[name])
    log.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def ray_errors(ray: Any) -> Iterator[None]:
    """Turns what Ray raises into what a worker said, or into one line about the cluster."""
    try:
        yield
    except ray.exceptions.RayError as error:
        said = _cause(error)
        if said is not None:
            raise said from error
        raise EngineError(
            f"Ray broke off ({_short(error)}): finished rows are kept, the same command goes on"
        ) from error


def _cause(error: BaseException) -> ZsadError | None:
    """The error of zsad that lies under one of Ray, if any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ZsadError):
            return seen
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
