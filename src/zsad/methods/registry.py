"""Registry of all methods by name. The table is data: nothing heavy is imported before a method is built.

Another package adds a method through the entry point group `zsad.methods`: each entry point loads to a
`MethodEntry`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

from zsad.errors import ConfigError

if TYPE_CHECKING:
    from zsad.clip.weights import Backbone
    from zsad.methods.base import Method
    from zsad.methods.settings import MethodConfig


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """Description of a method that is known before it is imported.

    Attributes:
        name: by which it is built.
        target: `module:class` of the method.
        title: in a few words.
        paper: its full title.
        venue: where and when it appeared.
        arxiv: identifier of its preprint; "" where there is none.
        routes: what its experts are and what chooses between them; "" for methods without experts.
        needs_training: whether it is useless before training.
        parameters: that training changes, on ViT-L/14@336 with the defaults.
        sources: what zsad's method was written from: "paper and code"; "paper", where no code is public;
            "abstract", where the paper could not be read either and the method is re-designed.
    """

    name: str
    target: str
    title: str
    paper: str
    venue: str
    arxiv: str = ""
    routes: str = ""
    needs_training: bool = True
    parameters: int = 0
    sources: Literal["paper and code", "paper", "abstract"] = "paper and code"

    @property
    def provenance(self) -> str:
        """Remark that a reader of its results needs; "" where the method is public in full."""
        return "re-designed from the abstract" if self.sources == "abstract" else ""

    def load(self) -> type[Method]:
        """Import the method's class."""
        module, _, name = self.target.partition(":")
        method_class: type[Method] = getattr(import_module(module), name)
        return method_class


def sources_note(method: str, provenance: str) -> str:
    """Sentence that results of a method come with; "" where it is public in full.

    Args:
        method: its name.
        provenance: as its entry and its models' cards have it.
    """
    if not provenance:
        return ""
    return (
        f"The method {method} is {provenance}: the paper could not be read where zsad was built and no code is "
        f"public, so these results are of this package's own design, not of its authors' system."
    )


def domain_note(config: Mapping[str, Any]) -> str:
    """Sentence on the images that a method's settings are for; "" where a method does not score two kinds differently.

    Args:
        config: as a model's card has it.
    """
    if "domain" not in config:
        return ""
    score = "fused with oddness" if config.get("oddness") == "fused" else config["score"]
    return f"scored as {config['domain']} images: maps smoothed over {config['sigma']:g} patches, image score {score}"


_MPAMA = "Learning Multi-granularity Visual-textual Alignment for Zero-shot Anomaly Detection"

METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry(
            name="promptmoe",
            target="zsad.methods.promptmoe:PromptMoE",
            title="Mixtures of learned prompts, chosen by what the image shows",
            paper="PromptMoE: Generalizable Zero-Shot Anomaly Detection via Visually-Guided Prompt Mixtures",
            venue="AAAI 2026",
            arxiv="2511.18116",
            routes="normal and abnormal prompt segments, chosen per image and layer by the layer's tokens",
            parameters=11_352_640,
            sources="paper",
        ),
        MethodEntry(
            name="mpa",
            target="zsad.methods.mpama:MPA",
            title="Learned prompts for several perception levels",
            paper=_MPAMA,
            venue="OpenReview JwSFgHCXeg, 2025",
            parameters=98_304,
            sources="abstract",
        ),
        MethodEntry(
            name="mpama",
            target="zsad.methods.mpama:MPAMA",
            title="MPA, then experts for the patch tokens",
            paper=_MPAMA,
            venue="OpenReview JwSFgHCXeg, 2025",
            routes="every patch to frozen, learnable and zero experts of one shared pool",
            parameters=161_792,
            sources="abstract",
        ),
        MethodEntry(
            name="wmoeclip",
            target="zsad.methods.wmoeclip:WMoECLIP",
            title="Prompts fed by a VAE, text refined by wavelet bands, experts for the image score",
            paper="WMoE-CLIP: Wavelet-Enhanced Mixture-of-Experts Prompt Learning for Zero-Shot Anomaly Detection",
            venue="ICASSP 2026",
            arxiv="2603.06313",
            routes="attention-pooling experts, chosen per image by what it means",
            parameters=9_698_312,
            sources="abstract",
        ),
        MethodEntry(
            name="moeclip",
            target="zsad.methods.moeclip:MoECLIP",
            title="LoRA experts for every patch inside the image tower",
            paper="MoECLIP: Patch-Specialized Experts for Zero-shot Anomaly Detection",
            venue="CVPR 2026",
            arxiv="2603.03101",
            routes="every token to LoRA experts behind four blocks of the image tower",
            parameters=4_674_560,
        ),
        MethodEntry(
            name="clip",
            target="zsad.methods.clip_zero_shot:ClipZeroShot",
            title="Plain CLIP with hand-written prompts",
            paper="Learning Transferable Visual Models From Natural Language Supervision",
            venue="ICML 2021",
            arxiv="2103.00020",
            needs_training=False,
        ),
        MethodEntry(
            name="winclip",
            target="zsad.methods.winclip:WinCLIP",
            title="Windows of patches at several scales against hand-written prompts",
            paper="WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation",
            venue="CVPR 2023",
            arxiv="2303.14814",
            needs_training=False,
        ),
        MethodEntry(
            name="aprilgan",
            target="zsad.methods.aprilgan:AprilGAN",
            title="A linear layer for each tapped block against hand-written prompts",
            paper="APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND "
            "Workshop Challenge Tracks 1&2",
            venue="CVPR 2023 workshop",
            arxiv="2305.17382",
            parameters=3_148_800,
        ),
        MethodEntry(
            name="anomalyclip",
            target="zsad.methods.anomalyclip:AnomalyCLIP",
            title="One learned pair of prompts without the object's name",
            paper="AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection",
            venue="ICLR 2024",
            arxiv="2310.18961",
            parameters=43_008,
        ),
        MethodEntry(
            name="adaclip",
            target="zsad.methods.adaclip:AdaCLIP",
            title="Static and image-made prompts in both towers",
            paper="AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection",
            venue="ECCV 2024",
            arxiv="2407.15795",
            parameters=10_661_632,
        ),
        MethodEntry(
            name="faprompt",
            target="zsad.methods.faprompt:FAPrompt",
            title="Several learned abnormal prompts, shifted by an image's most abnormal patches",
            paper="Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection",
            venue="ICCV 2025",
            arxiv="2410.10289",
            parameters=4_100_064,
        ),
    )
}


@lru_cache(maxsize=1)
def _plugins() -> dict[str, EntryPoint]:
    """Entry points of other packages; the names of zsad's own methods cannot be taken."""
    return {point.name: point for point in entry_points(group="zsad.methods") if point.name not in METHODS}


def names() -> tuple[str, ...]:
    """Names of all methods, zsad's own first."""
    return (*METHODS, *sorted(_plugins()))


def find(name: str) -> MethodEntry:
    """Return the entry of a name.

    Raises:
        ConfigError: no such method, or a plugin that cannot be loaded.
    """
    if name in METHODS:
        return METHODS[name]
    if name in _plugins():
        return _load_plugin(_plugins()[name])
    near = difflib.get_close_matches(name.lower(), names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names())}"
    raise ConfigError(f"no method is called {name!r}; {hint}")


def _load_plugin(point: EntryPoint) -> MethodEntry:
    try:
        entry = point.load()
    except Exception as error:  # whatever another package's import may raise
        raise ConfigError(
            f"method {point.name!r} of the plugin {point.value!r} cannot be loaded ({error}); update it"
        ) from error
    if not isinstance(entry, MethodEntry):
        raise ConfigError(
            f"the entry point {point.value!r} of method {point.name!r} is a {type(entry).__name__}, expected "
            f"a MethodEntry; update or remove the plugin"
        )
    return entry


def build(name: str, config: Mapping[str, Any] | MethodConfig | None, backbone: Backbone) -> Method:
    """Build a method on a backbone.

    Args:
        name: of the method.
        config: a configuration of that method, or the settings that differ from the defaults, or None.
        backbone: a loaded CLIP; it is frozen.

    Raises:
        ConfigError: an unknown method or setting, or one that is impossible on this backbone.
    """
    method_class = find(name).load()
    config_class = method_class.config_class
    if config is None or isinstance(config, Mapping):
        config = config_class.for_backbone(backbone.preset, **(config or {}))
    if config.activation != "as_trained":
        backbone = backbone.with_activation(config.activation)
    if not isinstance(config, config_class):
        raise ConfigError(
            f"method {name!r} takes a {config_class.__name__}, not a {type(config).__name__}; pass it or a dict"
        )
    return method_class(config, backbone)
