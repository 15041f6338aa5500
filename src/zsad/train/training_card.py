"""Cards of models: made from a method and its backbone, and from its training where there was one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsad.card import BackboneReference, Card, Training
from zsad.datasets.overlap import names_of, pack_tags
from zsad.images.picture import Preprocess
from zsad.methods.registry import find, names
from zsad.train.train_config import RUN_FIELDS, TrainConfig

if TYPE_CHECKING:
    from zsad.clip.weights import Backbone
    from zsad.datasets.manifest import DataSet
    from zsad.methods.base import Method
    from zsad.train.samples import TrainingSet


@dataclass(frozen=True, slots=True)
class CardParts:
    """Parts of a card that a method does not know.

    Attributes:
        backbone: name and hash of the backbone that the method stands on.
        preprocess: from image file to pixels.
    """

    backbone: BackboneReference
    preprocess: Preprocess

    @classmethod
    def of(cls, method: Method, backbone: Backbone) -> CardParts:
        """Return the parts for a method on a loaded backbone."""
        preset, side = backbone.preset, method.config.image_size
        return cls(
            BackboneReference(name=backbone.name, sha256=backbone.sha256),
            Preprocess(image_size=(side, side), mean=preset.mean, std=preset.std),
        )


def card_of(
    method: Method, parts: CardParts, *, training: Training | None = None, created: str | None = None
) -> Card:
    """Make the card of a method as it is now, with the colour scale it has.

    Args:
        method: built.
        parts: backbone and preprocessing.
        training: what it was trained on; None for a method without training.
        created: date of writing; None: now.
    """
    card = Card(
        method=method.name,
        provenance=find(method.name).provenance if method.name in names() else "",
        config=method.config.model_dump(mode="json"),
        backbone=parts.backbone,
        preprocess=parts.preprocess.to_dict(),
        map_spec=method.map_spec.model_copy(update={"scale": method.map_scale}),
        training=training,
    )
    return card if created is None else card.model_copy(update={"created": created})


def training_of(
    training: TrainingSet, sets: Sequence[DataSet], *, config: TrainConfig, steps: int
) -> Training:
    """Describe a training for a card.

    Args:
        training: the samples that were trained on.
        sets: the data sets that they are of.
        config: the settings.
        steps: of the optimiser.
    """
    return Training(
        datasets=tuple(dict.fromkeys(name for dataset in sets for name in names_of(dataset))),
        classes=tuple(sorted({item.sample.class_name for item in training.items})),
        samples=len(training.items),
        normal=training.count(0),
        anomalous=training.count(1),
        epochs=config.epochs,
        steps=steps,
        seed=config.seed,
        settings=config.model_dump(mode="json", exclude=set(RUN_FIELDS)),
        data_fingerprint=training.fingerprint(),
        images=pack_tags((item.sample.image, item.digest) for item in training.items),
    )
