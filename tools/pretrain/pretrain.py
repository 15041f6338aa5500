"""Stages 2 and 3: trains the bundled CLIP on the extracted features, then its stem's last stages on pixels.

What each term teaches:

* `soft`: image to text without captions: the class token against the names of the thousand classes, towards the
  teacher's soft labels (names of a random part of the classes each step).
* `caption`: image and caption find each other in the batch (CLIP's own loss; equal captions share the target).
* `state`: the own caption against the same caption in the opposite state.
* `dense`: two anchors in the joint space, thrown away afterwards, tell defective patches from sound ones in every
  tap, through the same `ln_post` and projection that methods use: how odd a patch is and whether it looks like
  damage becomes a direction that prompts can find.
* `image`: the mean of the most damaged-looking patches tells whether the picture shows a defect.
* `distil`: the last tap predicts the teacher's last map.

Log: one JSON line a step in `WORK/pretrain.jsonl`. Checkpoints: `WORK/state.safetensors`, every 100 steps.

On two processor cores `--stage train` takes 1.5 to 2.7 seconds a step, 27 to 45 minutes in all, and `--stage stem` 2
to 5 seconds a step, 3 to 7 minutes. A GPU (`--device cuda --precision bf16`) has not been measured; mixed precision was
tried on a processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import vocabulary
from corpus import Corpus, Item, token_shares
from extract import arguments, corpus_of, normalise, stage_maps
from safetensors.torch import load_file, save_file
from teacher import STEM, TeacherTail, load_state, warm_start
from torch import Tensor, nn
from torch.nn import functional as F

from zsad import synth
from zsad.clip.blocks import MobileStem
from zsad.clip.config import CLIPConfig, TextConfig, VisionConfig
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer

WIDTH, DEPTH, HEADS = 192, 4, 3
TAPS = (1, 2, 3, 4)
CONTEXT = 77
TEMPERATURE = 0.07


def config(vocab_size: int) -> CLIPConfig:
    """The shape of zsad-tiny."""
    vision = VisionConfig(
        image_size=256,
        patch_size=16,
        width=WIDTH,
        layers=DEPTH,
        heads=HEADS,
        mlp_width=4 * WIDTH,
        activation="gelu",
        stem=STEM,
    )
    text = TextConfig(
        context_length=CONTEXT,
        vocab_size=vocab_size,
        width=WIDTH,
        layers=3,
        heads=HEADS,
        mlp_width=4 * WIDTH,
        activation="gelu",
    )
    return CLIPConfig(embed_dim=WIDTH, vision=vision, text=text)


class Shards:
    """The extracted corpus, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        found = sorted(path for path in folder.glob("shard*") if path.suffix != ".part")
        if not found:
            raise SystemExit(f"no features in {folder}: run extract.py first")
        self.columns = {
            name: [np.load(path / f"{name}.npy", mmap_mode="r") for path in found]
            for name in ("maps", "logits", "last", "shares")
        }
        self.records = [
            record for path in found for record in json.loads((path / "records.json").read_text())
        ]
        self.shard_size = len(self.columns["logits"][0])

    def __len__(self) -> int:
        return len(self.records)

    def take(self, name: str, indices: np.ndarray) -> Tensor:
        """Rows of a column as float32."""
        rows = [self.columns[name][index // self.shard_size][index % self.shard_size] for index in indices]
        return torch.from_numpy(np.stack(rows)).float()


@dataclass(slots=True)
class Batch:
    """One step's data, on the device."""

    maps: Tensor
    logits: Tensor
    last: Tensor
    shares: Tensor
    labels: Tensor
    dense: Tensor
    state: Tensor
    captions: list[str]
    opposites: list[str]


@dataclass(frozen=True, slots=True)
class View:
    """A part of the grid, turned by quarter turns and perhaps mirrored: the same for all maps of a batch.

    Offsets and side are in patches of the teacher's last map, which is half as fine as the token grid.
    """

    turn: int = 0
    mirror: bool = False
    top: int = 0
    left: int = 0
    side: int = 8

    @classmethod
    def draw(cls, rng: np.random.Generator) -> View:
        """A random view of 5 to 7 of the last map's 8 patches a side."""
        side = int(rng.choice([5, 6, 6, 7]))
        top, left = (int(offset) for offset in rng.integers(8 - side + 1, size=2))
        return cls(int(rng.integers(4)), bool(rng.integers(2)), top, left, side)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (B, h, w, ...) seen so."""
        fine = x.shape[1] // 8
        top, left, side = fine * self.top, fine * self.left, fine * self.side
        x = torch.rot90(x[:, top : top + side, left : left + side], self.turn, dims=(1, 2))
        return x.flip(2) if self.mirror else x


def read_batch(shards: Shards, indices: np.ndarray, view: View, device: str) -> Batch:
    """The items of `indices`, all seen alike. What a part does not show is not its label: a cut-off defect is none."""
    records = [shards.records[index] for index in indices]
    maps = {name: view(shards.take(name, indices)) for name in ("maps", "last", "shares")}
    labels = torch.tensor([float(record["label"]) for record in records])
    dense = torch.tensor([float(record["dense"]) for record in records])
    shown = (maps["shares"] > 0).flatten(1).any(1).float()
    return Batch(
        maps=maps["maps"].to(device),
        logits=shards.take("logits", indices).to(device),
        last=maps["last"].to(device),
        shares=(maps["shares"] / 255).to(device),
        labels=torch.where(dense > 0, shown, labels).to(device),
        dense=dense.to(device),
        state=((dense == 0) | (shown == labels)).float().to(device),
        captions=[record["caption"] for record in records],
        opposites=[record["opposite"] for record in records],
    )


class Heads(nn.Module):
    """What is thrown away after pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(2, WIDTH) * WIDTH**-0.5)
        self.bias = nn.Parameter(torch.tensor([-1.0]))
        self.image_scale = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.distil = nn.Linear(WIDTH, 352)


class Pretrainer:
    """The model, its heads and the loss."""

    def __init__(self, clip: CLIP, heads: Heads, tokenizer: Tokenizer, names: list[str], device: str) -> None:
        self.clip, self.heads, self.tokenizer, self.device = clip, heads, tokenizer, device
        self.names = tokenizer.encode_batch(
            [f"a photo of a {name}." for name in names], context_length=CONTEXT, truncate=True
        )

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings (P, D)."""
        ids = self.tokenizer.encode_batch(texts, context_length=CONTEXT, truncate=True)
        return self._encode(ids)

    def _encode(self, ids: Tensor) -> Tensor:
        return F.normalize(self.clip.text.encode(ids.to(self.device), eos=self.tokenizer.eos), dim=-1)

    def towers(self, maps: Tensor) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
        """Unit class embedding (B, D), unit patch embeddings (B, N, D) of every tap, and the grid."""
        visual = self.clip.visual
        tokens, context, grid = visual.patch_embedding.tokens(maps)  # type: ignore[operator, union-attr]
        cls = visual.class_embedding.expand(len(maps), 1, -1) + context.unsqueeze(1)
        x = visual.ln_pre(torch.cat([cls, tokens], dim=1) + visual.positions(grid))
        patches = []
        for number, block in enumerate(visual.blocks, start=1):
            x = block(x)
            if number in TAPS:
                patches.append(F.normalize(visual.project(x[:, 1:]), dim=-1))
        return F.normalize(visual.project(x[:, 0]), dim=-1), patches, grid

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """All terms, weighted."""
        image, patches, grid = self.towers(batch.maps)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        own, opposite = self.texts(batch.captions + batch.opposites).chunk(2)
        return {
            "soft": 0.5 * self._soft(image, batch.logits, scale, rng),
            "caption": 0.3 * _contrast(scale * image @ own.T, batch.captions),
            "state": 0.5 * (F.softplus(scale * ((opposite - own) * image).sum(-1)) * batch.state).mean(),
            **self._dense(patches, batch),
            "distil": 0.5 * self._distil(patches[-1], batch.last, grid),
        }

    def _soft(self, image: Tensor, logits: Tensor, scale: Tensor, rng: np.random.Generator) -> Tensor:
        likely = logits.topk(2, dim=-1).indices.flatten().unique()
        others = torch.from_numpy(rng.choice(len(self.names), 64, replace=False)).to(likely)
        chosen = torch.cat([likely, others]).unique()
        text = self._encode(self.names[chosen.cpu()])
        target = (logits[:, chosen] / 1.5).softmax(-1)
        return -(target * (scale * image @ text.T).log_softmax(-1)).sum(-1).mean()

    def _dense(self, patches: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        anchors = F.normalize(self.heads.anchors, dim=-1)
        logits = torch.stack([tokens @ (anchors[1] - anchors[0]) for tokens in patches]) / TEMPERATURE
        logits = logits + self.heads.bias
        share = batch.shares.flatten(1)
        sound = (share == 0).float() * batch.dense[:, None]
        damaged = (share > 0.03).float() * batch.dense[:, None]
        loss = F.binary_cross_entropy_with_logits(logits, damaged.expand_as(logits), reduction="none")
        # Each defect counts alike, however few patches it has, and each picture's sound patches count together.
        weight = damaged / (damaged.sum(-1, keepdim=True) + 2) + sound / (sound.sum(-1, keepdim=True) + 2)
        dense = (loss * weight).sum(-1).mean()
        pooled = logits.mean(0).topk(5, dim=-1).values.mean(-1)
        image = self.heads.image_scale[0] * pooled + self.heads.image_scale[1]
        return {"dense": dense, "image": 0.3 * F.binary_cross_entropy_with_logits(image, batch.labels)}

    def _distil(self, tokens: Tensor, last: Tensor, grid: tuple[int, int]) -> Tensor:
        predicted = self.heads.distil(tokens).transpose(1, 2).unflatten(2, grid)
        predicted = F.avg_pool2d(predicted, 2).permute(0, 2, 3, 1)
        return 1 - F.cosine_similarity(predicted, last, dim=-1).mean()


def _contrast(logits: Tensor, captions: list[str]) -> Tensor:
    """CLIP's symmetric loss of logits (B, B), equal captions sharing the target evenly."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    codes = torch.tensor([numbers[caption] for caption in captions], device=logits.device)
    target = (codes[:, None] == codes[None]).float()
    target = target / target.sum(-1, keepdim=True)
    rows = -(target * logits.log_softmax(-1)).sum(-1).mean()
    columns = -(target * logits.T.log_softmax(-1)).sum(-1).mean()
    return (rows + columns) / 2


def rate(step: int, *, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimiser(clip: CLIP, heads: Heads, *, peak: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and embeddings do not."""
    named = [*clip.named_parameters(), *heads.named_parameters()]
    matrices = [p for name, p in named if p.requires_grad and p.ndim >= 2 and "embedding" not in name]
    vectors = [p for name, p in named if p.requires_grad and not (p.ndim >= 2 and "embedding" not in name)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def save(path: Path, clip: CLIP, heads: Heads, adam: torch.optim.AdamW, step: int) -> None:
    """Writes everything that resuming needs, whole or not at all."""
    tensors = {f"clip.{k}": v for k, v in clip.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    parameters = [p for group in adam.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        for key, value in adam.state.get(parameter, {}).items():
            tensors[f"adam.{number}.{key}"] = value
    scratch = path.with_suffix(".part")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, scratch, metadata={"step": str(step)}
    )
    scratch.replace(path)


def load(path: Path, clip: CLIP, heads: Heads, adam: torch.optim.AdamW) -> int:
    """Puts a saved state back and returns its step."""
    from safetensors import safe_open

    tensors = load_file(path)
    clip.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("clip.")})
    heads.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("heads.")})
    parameters = [p for group in adam.param_groups for p in group["params"]]
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, number, field = key.split(".")
            parameter = parameters[int(number)]
            adam.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    with safe_open(path, "pt") as handle:
        return int(handle.metadata()["step"])


def mixed(device: str, precision: str) -> torch.autocast:
    """Products in bf16 inside, if so asked."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def train(options: argparse.Namespace) -> None:
    """Stage 2, from the beginning or from where it was interrupted."""
    torch.manual_seed(options.seed)
    work, device = options.work, options.device
    corpus = corpus_of(options)
    shards = Shards(work / "features")
    tokenizer = make_vocabulary(work / "tokenizer.json", corpus, shards)
    clip = CLIP(config(tokenizer.vocab_size)).to(device)
    warm_start(clip.visual.patch_embedding, load_state()[0])  # type: ignore[arg-type]
    frozen = ("first", "stages")
    for name, parameter in clip.visual.patch_embedding.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    heads = Heads().to(device)
    adam = optimiser(clip, heads, peak=options.rate)
    state = work / "state.safetensors"
    first = load(state, clip, heads, adam) if state.exists() else 0
    trainer = Pretrainer(clip, heads, tokenizer, corpus.class_names, device)
    started = time.monotonic()
    with (work / "pretrain.jsonl").open("a") as log:
        for step in range(first, options.steps):
            rng = np.random.default_rng([options.seed, 1, step])
            indices = rng.choice(len(shards), options.batch, replace=False)
            batch = read_batch(shards, indices, View.draw(rng), device)
            for group in adam.param_groups:
                group["lr"] = rate(step, steps=options.steps, peak=options.rate)
            with mixed(device, options.precision):
                losses = trainer.losses(batch, rng)
            adam.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], 1.0)
            adam.step()
            entry = {"step": step, "seconds": round(time.monotonic() - started, 1)}
            log.write(json.dumps(entry | {k: round(v.item(), 4) for k, v in losses.items()}) + "\n")
            log.flush()
            if (step + 1) % 100 == 0 or step + 1 == options.steps:
                save(state, clip, heads, adam, step + 1)


def make_vocabulary(path: Path, corpus: Corpus, shards: Shards) -> Tokenizer:
    """The vocabulary, learned once from all names and captions."""
    if path.exists():
        return Tokenizer.from_file(path)
    rng = np.random.default_rng(corpus.seed)
    texts = [f"a photo of a {name}." for name in corpus.class_names]
    texts += [record["caption"] for record in shards.records[:4000]]
    texts += [synth.caption_for(name, kind, rng) for name in synth.MATERIALS for kind in synth.KINDS]
    return vocabulary.train(texts, path)


def stem_training(options: argparse.Namespace) -> None:
    """Stage 3: a few steps on pixels that nothing has seen yet, with the whole stem trained, at a small rate.

    Gradients through the stem's early stages cost many times the rest on a CPU, so this is short.
    """
    torch.manual_seed(options.seed + 1)
    corpus = corpus_of(options)
    tokenizer = Tokenizer.from_file(options.work / "tokenizer.json")
    device = options.device
    clip, heads = CLIP(config(tokenizer.vocab_size)).to(device), Heads().to(device)
    tensors = load_file(options.work / "state.safetensors")
    clip.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("clip.")})
    heads.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("heads.")})
    trainer = Pretrainer(clip, heads, tokenizer, corpus.class_names, device)
    adam = optimiser(clip, heads, peak=options.stem_rate)
    teacher = Teacher(device)
    with (options.work / "stem.jsonl").open("w") as log:
        for step in range(options.stem_steps):
            first = options.items + step * options.stem_batch
            items = [corpus.item(index) for index in range(first, first + options.stem_batch)]
            with mixed(device, options.precision):
                batch = pixel_batch(items, clip, teacher, device=device)
                losses = trainer.losses(batch, np.random.default_rng([options.seed, 2, step]))
            adam.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], 1.0)
            adam.step()
            log.write(json.dumps({"step": step} | {k: round(v.item(), 4) for k, v in losses.items()}) + "\n")
            log.flush()
    save(options.work / "final.safetensors", clip, heads, adam, options.stem_steps)


def pixel_batch(items: list[Item], clip: CLIP, teacher: Teacher, *, device: str) -> Batch:
    """A batch of items as they are drawn, through the model's own stem and the teacher."""
    pixels = normalise([item.image for item in items]).to(device)
    logits, last = teacher(pixels)
    shares = torch.from_numpy(np.stack([token_shares(item.mask, 16) for item in items]))
    return Batch(
        maps=clip.visual.patch_embedding.maps(pixels),  # type: ignore[operator, union-attr]
        logits=logits,
        last=last,
        shares=shares.float().to(device) / 255,
        labels=torch.tensor([float(item.label) for item in items], device=device),
        dense=torch.tensor([float(item.dense) for item in items], device=device),
        state=torch.ones(len(items), device=device),
        captions=[item.caption for item in items],
        opposites=[item.opposite for item in items],
    )


class Teacher:
    """The teacher on pixels (B, 3, H, W): logits (B, 1000) and last map (B, h, w, 352)."""

    def __init__(self, device: str = "cpu") -> None:
        state = load_state()[0]
        self.stem = MobileStem(STEM, 64).eval()
        warm_start(self.stem, state)
        self.stem = self.stem.to(device)
        self.tail = TeacherTail(state).eval().to(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(pixels.device.type, enabled=False):  # what is learned from is exact
            last, logits = self.tail(stage_maps(self.stem, pixels)[1])
        return logits.clone(), last.permute(0, 2, 3, 1).clone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--stem-steps", type=int, default=80)
    parser.add_argument("--stem-batch", type=int, default=8)
    parser.add_argument("--stem-rate", type=float, default=5e-5)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 is mixed precision"
    )
    parser.add_argument("--stage", choices=["train", "stem"], default="train")
    chosen = parser.parse_args()
    train(chosen) if chosen.stage == "train" else stem_training(chosen)
