"""The facade: load a detector once, then give it images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from zsad.backends.backend import Backend, Precision
from zsad.card import Card
from zsad.errors import ConfigError, ZsadError
from zsad.images.open import Source
from zsad.predict.pipeline import PREVIEW_SIDE, OnError, judge, read, score, stream
from zsad.predict.prediction import Prediction
from zsad.predict.view import Model, View, calibration_beside
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.calibration.calibration import Calibration, ModelKey
    from zsad.comparison.compare import Comparison
    from zsad.methods.base import Method
    from zsad.predict.tiles import OnTile, Tiling


class Detector:
    """A model, and the view with which it looks at images and judges them.

    Both are immutable. `with_` gives a detector with another view of the same model; `use` and `calibrate` replace the
    view of this one.

    Args:
        model: backend, card, preprocessing.
        view: input options, object name, region of interest, thresholds, calibration.
    """

    __slots__ = ("model", "view")

    def __init__(self, model: Model, view: View | None = None) -> None:
        self.model = model
        self.view = view or View()

    @classmethod
    def from_method(cls, method: Method, card: Card, *, name: str = "model") -> Detector:
        """Return a detector of a built method and its card (`zsad.train.training_card.card_of`)."""
        from zsad.backends.torch import TorchBackend

        return cls(Model(TorchBackend(method), card, name))

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, method={self.card.method!r}, backbone={self.card.backbone.name!r})"

    @property
    def name(self) -> str:
        """The name by which the model was asked for."""
        return self.model.name

    @property
    def backend(self) -> Backend:
        """The runtime of the model: PyTorch, or that of an exported graph."""
        return self.model.backend

    @property
    def card(self) -> Card:
        """Method, configuration, backbone, preprocessing and training of the model."""
        return self.model.card

    @property
    def method(self) -> Method:
        """The method itself; ConfigError where the model is an exported graph, which has none."""
        return self.model.method

    @property
    def comparison(self) -> Comparison | None:
        """The images that pictures are compared with; None: each picture is scored alone."""
        return cast("Comparison | None", self.model.comparison)

    @property
    def calibration(self) -> Calibration | None:
        """The thresholds that give predictions a verdict; None: scores only."""
        return cast("Calibration | None", self.view.calibration)

    @property
    def object_name(self) -> str | None:
        """The object that prompts name where an image does not name its own."""
        return self.view.object_name or self.model.object_name

    def with_(self, **changes: Any) -> Detector:
        """Return a detector with another view of the same model.

        Args:
            changes: fields of `zsad.predict.view.View`: options, object_name, region, min_area, pixel_threshold,
                calibration.

        Raises:
            ConfigError: an unknown field.
            CalibrationError: a calibration (or its file) that is of another model.

        Example:
            >>> import zsad
            >>> detector = zsad.load("clip-tiny", device="cpu").with_(object_name="metal nut", min_area=20)
            >>> detector.object_name, detector.view.min_area
            ('metal nut', 20)
        """
        if unknown := sorted(set(changes) - set(View.__dataclass_fields__)):
            raise ConfigError(
                f"a view has no {unknown}, expected some of {sorted(View.__dataclass_fields__)}"
            )
        detector = Detector(self.model, self.view)
        if "calibration" in changes:
            calibration = changes.pop("calibration")
            detector.view = replace(self.view, calibration=None)
            if calibration is not None:
                detector.use(calibration)
        detector.view = replace(detector.view, **changes)
        return detector

    def predict(
        self,
        source: Source,
        *,
        object_name: str | None = None,
        tile: Tiling | str | int | None = None,
        on_tile: OnTile | None = None,
    ) -> Prediction:
        """Return the prediction for one image.

        Args:
            source: a path, a file's content as bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
                (H, W, 4) of uint8, uint16, bool, or float in [0, 1].
            object_name: object in it, such as "metal nut", for methods whose prompts name it.
            tile: "auto", "off", a side in pixels, or a `zsad.predict.tiles.Tiling`; None: the view's. Thresholds only
                hold for pictures that are cut as in the calibration.
            on_tile: called with the tiles of a large picture that are done, and all of them.

        Raises:
            ImageError: it cannot be read or used.
            ConfigError: a tile that makes no sense.
        """
        view = self.view
        if tile is not None:
            from zsad.predict.tiles import Tiling

            view = replace(view, options=replace(view.options, tiling=Tiling.of(tile)))
        if object_name is not None:
            view = replace(view, object_name=object_name)
        draw_side = None if view.options.tiling is None else PREVIEW_SIDE
        [scored] = score(self.model, [read(source, self.model, view, draw_side=draw_side)], on_tile=on_tile)
        if isinstance(scored, ZsadError):
            raise scored
        return judge(scored, view)

    def predict_folder(
        self, folder: str | Path, *, batch_size: int | None = None, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Yield the predictions of all images below a folder, sorted by path, in constant memory.

        Args:
            folder: searched recursively; one image or a glob pattern will do, too.
            batch_size: images in a pass; None takes what suits the device.
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
        draw_side: int | None = None,
    ) -> Iterator[Prediction]:
        """Yield the predictions of frames, with their `time`; sources are `clip.mp4#250`.

        Args:
            source: a video file, an address of a camera such as rtsp://..., or a device such as /dev/video0.
            every: 1 takes every frame, 5 the 1st, the 6th, ...
            skip: called with a frame's address; true leaves it out.
            draw_side: as in `predict_samples`; None keeps frames as they are.

        Raises:
            ImageError: it cannot be opened, or is damaged after the frames that were yielded.
            ConfigError: `every` below 1, or PyAV is not installed.
        """
        from zsad.images.open import numbered
        from zsad.images.video import iter_frames

        for frame in iter_frames(source, every=every):
            address = numbered(source, frame.number)
            if skip is not None and skip(address):
                continue
            ready = read(frame.image, self.model, self.view, name=address, draw_side=draw_side)
            [scored] = score(self.model, [ready])
            if isinstance(scored, ZsadError):
                raise scored
            scored.time = frame.seconds
            yield judge(scored, self.view)

    def predict_samples(
        self,
        samples: Iterable[Sample],
        *,
        batch_size: int | None = None,
        on_error: OnError | None = None,
        draw_side: int | None = None,
        on_tile: OnTile | None = None,
    ) -> Iterator[Prediction]:
        """Yield the predictions of samples, in order.

        Args:
            samples: read as far as needed.
            batch_size, on_error: as in `predict_folder`.
            draw_side: keep each picture, reduced to this side, for drawing.
            on_tile: as in `predict`.
        """
        yield from stream(
            self.model,
            samples,
            self.view,
            on_error=on_error or _warn,
            batch_size=batch_size,
            draw_side=draw_side,
            on_tile=on_tile,
        )

    def _named(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return samples whose object is this detector's."""
        return [replace(sample, class_name=self.object_name or "object") for sample in samples]

    def key(self) -> ModelKey:
        """Return what a calibration knows this model by."""
        from zsad.calibration.calibration import model_key

        return model_key(self.model, self.view.options)

    def identity(self) -> str:
        """Return a short hash of all that decides a score; see `zsad.predict.view.Model`."""
        return self.model.identity(self.view.options)

    def use(self, calibration: Calibration | str | Path) -> Detector:
        """Take a calibration, with its region of interest and its object name; return this detector.

        Raises:
            CalibrationError: it cannot be read, or was made for another model.
        """
        from zsad.calibration.calibration import Calibration, read_calibration

        name = "the calibration"
        if not isinstance(calibration, Calibration):
            name, calibration = f"calibration {calibration}", read_calibration(calibration)
        calibration.check_model(self.key(), where=name)
        self.view = self.view.calibrated(calibration)
        return self

    def use_default(self, calibration: Calibration | str | Path | None = "auto") -> Detector:
        """As `use`; "auto" takes the calibration beside the model, if any, and None or "none" takes none."""
        if calibration == "auto":
            file = self.model.calibration_file
            calibration = file if file is not None and file.is_file() else None
        return self if calibration in (None, "none") else self.use(calibration)

    def calibrate(
        self,
        normals: str | Path | Iterable[Sample] = (),
        *,
        labelled: Iterable[Sample] = (),
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Callable[[int], None] | None = None,
        on_tile: OnTile | None = None,
        **target: Any,
    ) -> Calibration:
        """Find thresholds on normal images, take them from now on, and return them.

        Region of interest and object name of the view become part of the calibration.

        Args:
            normals: a folder, a pattern, or samples; may be missing with `labelled`.
            labelled: samples with labels 0 and 1; the image threshold is then chosen on them by `goal`.
            batch_size, on_error, on_tile: as in `predict_samples`.
            progress: called with the number of images done since the last call.
            target: fields of `zsad.calibration.thresholds.CalibrationTarget`: target_fpr, pixel_fpr, confidence,
                pixel_rule, goal.

        Raises:
            CalibrationError: no usable normal image, an unknown target, or impossible numbers.
            DataError: the folder holds no image.
        """
        from zsad.calibration.calibrate import calibrate
        from zsad.calibration.thresholds import CalibrationTarget
        from zsad.images.inputs import expand_inputs

        samples = expand_inputs([normals]) if isinstance(normals, str | Path) else normals
        calibration = calibrate(
            self.model,
            self.view,
            self._named(samples),
            labelled=self._named(labelled),
            target=CalibrationTarget.of(**target),
            batch_size=batch_size,
            on_error=on_error or _warn,
            progress=progress,
            on_tile=on_tile,
        )
        self.view = self.view.calibrated(calibration)
        return calibration

    def with_references(
        self,
        references: str | Path | Iterable[Sample],
        *,
        limit: int = 10_000,
        pick: Literal["random", "coreset"] = "random",
        scale: Literal["standard", "distance"] = "standard",
        on_error: OnError | None = None,
    ) -> Detector:
        """Return a detector that compares images with normal ones, too, and shares the method with this one.

        It has no calibration: scores differ. See `zsad.comparison.compare`.

        Args:
            references: normal images (a folder, a pattern, samples), or a file that `References.save` wrote.
            limit: patches that are remembered: `pick` random ones, or those that cover the others best.
            scale: "standard" judges distances by those between normal images, "distance" does not.
            on_error: as in `predict_folder`.

        Raises:
            ConfigError: the model is an exported graph, or a number makes no sense.
            DataError: no image is found or can be used.
            CheckpointError: a file that is broken or of another model.
        """
        from zsad.comparison.load import load_or_collect

        comparison = load_or_collect(
            self.model, self.view, references, limit=limit, pick=pick, scale=scale, on_error=on_error or _warn
        )
        return self._comparing(comparison)

    def with_mutual(
        self,
        samples: str | Path | Iterable[Sample],
        *,
        others: int = 64,
        scale: Literal["standard", "distance"] = "standard",
        on_error: OnError | None = None,
    ) -> Detector:
        """Return a detector that compares images with others of a batch, which need not be normal.

        Args:
            samples: the batch (a folder, a pattern, samples); those to be scored, as a rule.
            others: images of it that are kept for comparison.
            scale, on_error: as in `with_references`, which also says what is raised.
        """
        from zsad.comparison.load import collect_batch

        comparison = collect_batch(
            self.model, self.view, samples, others=others, scale=scale, on_error=on_error or _warn
        )
        return self._comparing(comparison)

    def _comparing(self, comparison: Comparison) -> Detector:
        from zsad.backends.torch import TorchBackend

        precision = cast("Precision", self.backend.precision)
        backend = TorchBackend(self.method, precision=precision, comparison=comparison)
        return Detector(replace(self.model, backend=backend), replace(self.view, calibration=None))

    def save(self, path: str | Path) -> Path:
        """Write adapter and card as a checkpoint file or into a folder, a calibration beside it; return the file.

        Raises:
            ConfigError: the model is an exported graph.
            StorageError: the disk is full or cannot be written.
        """
        from zsad.calibration.calibration import write_calibration
        from zsad.train.checkpoint import save_checkpoint

        file = save_checkpoint(Path(path), self.method, self.card)
        if self.calibration is not None:
            write_calibration(self.calibration, calibration_beside(file))
        return file


def _warn(_: Sample, error: ZsadError) -> None:
    warnings.warn(f"skipped: {error}", stacklevel=3)
