"""The facade: load a detector once, then give it images."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from zsad.backends.backend import Backend, Precision
from zsad.backends.wrap import as_backend
from zsad.calibration.calibration import (
    Calibration,
    ModelKey,
    beside,
    make_calibration,
    read_calibration,
    write_calibration,
)
from zsad.calibration.thresholds import CalibrationTarget, NormalScores
from zsad.card import Card
from zsad.errors import ConfigError, ImageError, ZsadError
from zsad.images.decode import Source, read_image
from zsad.images.preprocess import Preprocess
from zsad.loading import BackendName, Request, load_model, untrained_methods
from zsad.nn.maps import MapSpec
from zsad.predict.options import SQUARE, InputOptions
from zsad.predict.pipeline import OnError, predict_pixels, predict_samples
from zsad.predict.prediction import Prediction
from zsad.predict.roi import RegionOfInterest
from zsad.predict.tiles import OnTile, Tiling, predict_large
from zsad.types import Sample

if TYPE_CHECKING:
    import torch

    from zsad.comparison.compare import Comparison
    from zsad.methods.base import Method

__all__ = ["DEFAULT_MODEL", "Detector", "load", "untrained_methods"]

DEFAULT_MODEL = "promptmoe-tiny"


class Detector:
    """A model with its weights in place, ready to score images.

    Args:
        model: a built and loaded method, or a backend that runs one.
        card: what it is: method, configuration, backbone, preprocessing, training.
        name: by which it was asked for.

    Attributes:
        backend: that runs the model: PyTorch, or the runtime of an exported graph.
        calibration: thresholds that give predictions a verdict; None: scores only. Set by `use` or `calibrate`.
        region: where anomalies count; None: everywhere. A calibration brings its own.
        shows: what the images show, for methods whose prompts name it, where an image does not say so itself.
        pixel_threshold: map value above which regions lie; None: no regions. A calibration brings its own.
        min_area: regions smaller than so many pixels of the image are left out.
        looking: whether pictures are cut into tiles or keep their proportions, and how files are read.
        on_tile: called, if set, with the tiles that are done and all of a large picture that is being looked at.
        file: the model's weights or graph, beside which a calibration may lie; None where there is none.
    """

    def __init__(self, model: Method | Backend, card: Card, *, name: str = "model") -> None:
        self.backend = as_backend(model)
        self.card = card
        self.name = name
        self.preprocess = Preprocess.from_dict(card.preprocess)
        self.calibration: Calibration | None = None
        self.region: RegionOfInterest | None = None
        self.shows: str | None = None
        self.pixel_threshold: float | None = None
        self.min_area = 0.0
        self.looking = SQUARE
        self.on_tile: OnTile | None = None
        self.file: Path | None = None

    @property
    def method(self) -> Method:
        """The method itself.

        Raises:
            ConfigError: the model is an exported graph, which has none.
        """
        method: Method | None = getattr(self.backend, "method", None)
        if method is None:
            raise ConfigError(
                f"{self.name} is an exported graph, this needs the method itself; give the model it was made from"
            )
        return method

    @property
    def device(self) -> torch.device:
        """Where the method lives; ConfigError for an exported graph."""
        return next(self.method.parameters()).device

    @property
    def comparison(self) -> Comparison | None:
        """What images are compared with; None: they are looked at alone."""
        return getattr(self.backend, "comparison", None)

    @property
    def map_spec(self) -> MapSpec:
        """How grids become maps."""
        return self.backend.spec

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, method={self.card.method!r}, backbone={self.card.backbone.name!r})"

    def predict(
        self, source: Source, *, shows: str | None = None, tile: Tiling | str | int | None = None
    ) -> Prediction:
        """The prediction for one image.

        Args:
            source: a path, the content of an image file as bytes, a Pillow image, or an array (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4) of uint8, uint16, bool, or float in [0, 1].
            shows: what it shows, such as "metal nut", for methods whose prompts name the object.
            tile: how a large picture is cut: "auto", "off", a side in pixels, or a `zsad.predict.tiles.Tiling`; None:
                as `looking` says. Thresholds only hold for pictures that are cut as in the calibration.

        Raises:
            ImageError: it cannot be read or used.
            ConfigError: a tile that makes no sense.
        """
        looking = self.looking if tile is None else replace(self.looking, tiling=Tiling.of(tile))
        prediction = self._look_at(source, looking, shows or self.shows)
        if not np.isfinite(prediction.score):
            raise ImageError(f"{prediction.source or 'image'} has no finite score: use device='cpu'")
        return self.judge(prediction)

    def _look_at(self, source: Source, looking: InputOptions, shows: str | None) -> Prediction:
        """The prediction for one image, without a verdict."""
        named = isinstance(source, str | Path)
        if looking.tiling is not None:
            prediction = predict_large(
                self.backend,
                source,
                self.preprocess,
                looking,
                config=self._score_config,
                words=shows,
                on_tile=self.on_tile,
            )
        else:
            image, size = read_image(source, reading=looking.reading)
            preprocess = self.preprocess
            if looking.keep_aspect:
                preprocess = preprocess.fitted(size, self.backend.patch)
            words = None if shows is None else (shows,)
            prediction = predict_pixels(self.backend, preprocess(image)[None], sizes=[size], words=words)[0]
            prediction.picture = None if named else image
        prediction.source = str(source) if named else None
        prediction.reading = looking.reading
        return prediction

    def judge(self, prediction: Prediction) -> Prediction:
        """A prediction of this model with region of interest and calibration applied: the same object.

        Raises:
            ImageError: the region does not fit the image.
        """
        prediction.min_area = self.min_area
        prediction.confine(self.region)
        if self.calibration is not None:
            self.calibration.judge(prediction)
        prediction.pixel_threshold = self.pixel_threshold
        return prediction

    def predict_folder(
        self, folder: str | Path, *, batch_size: int | None = None, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Yields the predictions of all images below a folder, sorted by path, in constant memory.

        Args:
            folder: searched recursively; one image or a glob pattern will do, too.
            batch_size: images a pass; None takes what suits the device.
            on_error: called with each sample that cannot be used and the reason; None warns.

        Raises:
            DataError: no image is found.
        """
        from zsad.images.inputs import expand_inputs

        samples = self._named(expand_inputs([folder]))
        yield from self.predict_samples(samples, batch_size=batch_size, on_error=on_error)

    def predict_video(
        self,
        source: str | Path,
        *,
        every: int = 1,
        skip: Callable[[str], bool] | None = None,
        shows: str | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of frames, with their `time`, in constant memory; sources are `clip.mp4#250`.

        Args:
            source: a video file, an address of a camera such as rtsp://..., or a device such as /dev/video0.
            every: 1 takes every frame, 5 the 1st, the 6th, ...
            skip: called with a frame's address, says whether to leave it out.
            shows: as in `predict`.

        Raises:
            ImageError: it cannot be opened, or is damaged: frames before that are yielded.
            ConfigError: `every` below 1, or PyAV is not installed.
        """
        from zsad.images.address import numbered
        from zsad.images.video import iter_frames

        for frame in iter_frames(source, every=every):
            address = numbered(source, frame.number)
            if skip is None or not skip(address):
                prediction = self.predict(frame.image, shows=shows)
                prediction.source, prediction.time = address, frame.seconds
                yield prediction

    def predict_samples(
        self,
        samples: Iterable[Sample],
        *,
        batch_size: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of samples, in order; arguments as `predict_folder`."""
        report = on_error or _warn
        predictions = predict_samples(
            self.backend,
            samples,
            self.preprocess,
            on_error=report,
            batch_size=self.backend.batch_size if batch_size is None else batch_size,
            looking=self.looking,
            config=self._score_config,
            on_tile=self.on_tile,
        )
        for prediction in predictions:
            try:
                yield self.judge(prediction)
            except ImageError as error:
                source = str(prediction.source)
                report(Sample(Path(source), label=prediction.label), ImageError(f"{source}: {error}"))

    @property
    def _score_config(self) -> dict[str, Any]:
        """Settings that say how an image score is made; where comparisons have a part in it, none of them does."""
        return {} if self.comparison is not None else dict(self.card.config)

    def _named(self, samples: Iterable[Sample]) -> list[Sample]:
        """Samples that show what this detector's images show."""
        return [replace(sample, class_name=self.shows or "object") for sample in samples]

    def key(self) -> ModelKey:
        """By what a calibration knows this model."""
        card = self.card
        return ModelKey(
            identity=self.identity(), name=self.name, method=card.method, backbone=card.backbone.name
        )

    def identity(self) -> str:
        """A short hash of all that decides a score.

        That is configuration, backbone, preprocessing, the adapter's tensors, how pictures are looked at, and what they
        are compared with.
        """
        own = self.backend.identity(self.card)
        looking = self.looking.to_dict()
        if self.comparison is not None:
            looking["compared"] = self.comparison.digest()
        if not looking:
            return own
        return hashlib.sha256(json.dumps([own, looking], sort_keys=True).encode()).hexdigest()[:16]

    def use(self, calibration: Calibration | str | Path) -> Detector:
        """Takes a calibration, with its region of interest and its word for what images show; returns itself.

        Raises:
            CalibrationError: it cannot be read, or was made for another model.
        """
        given = not isinstance(calibration, Calibration)
        found = read_calibration(calibration) if not isinstance(calibration, Calibration) else calibration
        found.check_model(self.key(), where=f"calibration {calibration}" if given else "the calibration")
        self.calibration, self.pixel_threshold = found, found.pixel.value
        self.region, self.shows = found.region, found.object_name
        return self

    def use_found(self, calibration: Calibration | str | Path | None = "auto") -> Detector:
        """As `use`; "auto" takes the calibration beside the model, if any, and None or "none" takes none."""
        if calibration == "auto":
            own = None if self.file is None else beside(self.file)
            calibration = own if own is not None and own.is_file() else None
        return self if calibration in (None, "none") else self.use(calibration)

    def calibrate(
        self,
        normals: str | Path | Iterable[Sample] = (),
        *,
        labelled: Iterable[Sample] = (),
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Callable[[int], None] | None = None,
        **wish: Any,
    ) -> Calibration:
        """Finds thresholds on normal images, takes them from now on, and returns them.

        A region of interest (`region`) and a word (`shows`) that are set beforehand become part of the calibration.

        Args:
            normals: normal images: a folder, a pattern, or samples; may be missing with `labelled`.
            labelled: samples with labels 0 and 1; the image threshold is then chosen on them by `goal`.
            batch_size: images a pass.
            on_error: as in `predict_folder`.
            progress: called with the number of images done since the last call.
            wish: fields of `zsad.calibration.thresholds.CalibrationTarget`: target_fpr, pixel_fpr, confidence,
                pixel_rule, goal.

        Raises:
            CalibrationError: no usable normal image, an unknown wish, or impossible numbers.
            DataError: the folder holds no image.
        """
        from zsad.images.inputs import expand_inputs

        wanted = CalibrationTarget.of(**wish)
        samples = expand_inputs([normals]) if isinstance(normals, str | Path) else list(normals)
        held = list(labelled)
        # Verdicts of a former calibration are not wanted.
        bare = Detector(self.backend, self.card, name=self.name)
        bare.region, bare.shows, bare.looking = self.region, self.shows, self.looking
        bare.on_tile = self.on_tile
        seen, scores = NormalScores(), ([], [])  # type: tuple[NormalScores, tuple[list[float], list[float]]]
        for group in (samples, held):
            named = self._named(group)
            for prediction in bare.predict_samples(named, batch_size=batch_size, on_error=on_error):
                if group is held and prediction.label is not None:
                    scores[prediction.label].append(prediction.score)
                if group is samples or (not samples and prediction.label == 0):
                    seen.add(prediction)
                if progress is not None:
                    progress(1)
        self.calibration = make_calibration(
            seen,
            wanted,
            model=self.key(),
            object_name=self.shows,
            region=self.region,
            labelled=scores if held else None,
        )
        self.pixel_threshold = self.calibration.pixel.value
        return self.calibration

    def with_references(
        self,
        references: str | Path | Iterable[Sample],
        *,
        limit: int = 10_000,
        pick: Literal["random", "coreset"] = "random",
        scale: Literal["standard", "distance"] = "standard",
        on_error: OnError | None = None,
    ) -> Detector:
        """A detector that compares images with normal ones, too, and shares the model with this one.

        It has no calibration: scores are others. `zsad.comparison.compare` says what is compared and how it is fused.

        Args:
            references: normal images (a folder, a pattern, samples), or a file that `References.save` wrote.
            limit: patches that are remembered.
            pick: which: random ones, or those that cover the others best.
            scale: "standard" judges distances by those between normal images, "distance" takes them as they are.
            on_error: as in `predict_folder`.

        Raises:
            ConfigError: the model is an exported graph, or a number makes no sense.
            DataError: no image is found or can be used.
            CheckpointError: a file that is broken or of another model.
        """
        from zsad.comparison.load import load_or_collect

        found = load_or_collect(
            self, references, limit=limit, pick=pick, scale=scale, on_error=on_error or _warn
        )
        return self._comparing(found)

    def with_mutual(
        self,
        samples: str | Path | Iterable[Sample],
        *,
        others: int = 64,
        scale: Literal["standard", "distance"] = "standard",
        on_error: OnError | None = None,
    ) -> Detector:
        """A detector that compares images with those of a batch, which need not be normal; see `zsad.comparison.batch`.

        Args:
            samples: the batch (a folder, a pattern, samples); those to be scored, as a rule.
            others: images of it that are kept for comparison.
            scale: as in `with_references`.
            on_error: as in `predict_folder`.

        Raises:
            ConfigError: the model is an exported graph, or a number makes no sense.
            DataError: fewer than two different images can be used.
        """
        from zsad.comparison.load import collect_batch

        return self._comparing(
            collect_batch(self, samples, others=others, scale=scale, on_error=on_error or _warn)
        )

    def _comparing(self, comparison: Comparison) -> Detector:
        from zsad.backends.torch import TorchBackend

        backend = TorchBackend(
            self.method, precision=cast("Precision", self.backend.precision), comparison=comparison
        )
        made = Detector(backend, self.card, name=self.name)
        made.region, made.shows, made.looking = self.region, self.shows, self.looking
        made.pixel_threshold, made.min_area, made.file = self.pixel_threshold, self.min_area, self.file
        return made

    def save(self, path: str | Path) -> Path:
        """Writes adapter and card as a checkpoint file or into a folder, a calibration beside it; returns the file.

        Raises:
            ConfigError: the model is an exported graph.
            StorageError: the disk is full or cannot be written.
        """
        from zsad.train.checkpoint import save_checkpoint

        file = save_checkpoint(Path(path), self.method, self.card)
        if self.calibration is not None:
            write_calibration(self.calibration, beside(file))
        return file


def _warn(sample: Sample, error: ZsadError) -> None:
    warnings.warn(f"skipped: {error}", stacklevel=3)


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    backbone: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    calibration: str | Path | Calibration | None = "auto",
    backend: BackendName | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
) -> Detector:
    """A detector, ready for images.

    Args:
        model: a run folder, a checkpoint file, a bundled model ("promptmoe-tiny"), a method that needs no
            training ("clip-tiny" on the bundled backbone, "clip" on any `backbone`), or what `zsad export` wrote.
        backbone: another tower for methods without training, by preset name or path; for a trained model,
            where its own backbone lies.
        weights: file or folder of the backbone's weights, where not bundled or cached.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        calibration: thresholds, or their file; "auto" takes the one beside the model, if any; None or "none": none.
        backend: "torch"; "onnx" or "openvino" for what `zsad export` wrote, without importing PyTorch; "auto" takes
            what is fastest here, at the cost of an export when a model is first used; None: what the model is made for.
        precision: "fp32", "bf16", "fp16"; "auto" is full precision in PyTorch, unless the backend is "auto" and there
            is a GPU, and bf16 in OpenVINO on processors that have it.
        threads: of the runtime of an exported graph; PyTorch's are the process's own.

    Raises:
        CalibrationError: the calibration is broken, or of another model.
        CheckpointError: no such model, a broken one, or one of another backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: the device is not there, or the backend does not run this model.

    Example:
        >>> import numpy, zsad
        >>> detector = zsad.load("promptmoe-tiny", device="cpu")
        >>> prediction = detector.predict(numpy.zeros((480, 640), numpy.uint8))
        >>> prediction.map.shape, 0 <= prediction.score <= 1
        ((480, 640), True)
    """
    path = Path(weights) if weights is not None else None
    found = load_model(Request(model, backbone, path, device, backend, precision, threads))
    detector = Detector(found.backend, found.card, name=str(model))
    detector.shows, detector.file = found.shows, found.file
    return detector.use_found(calibration)
