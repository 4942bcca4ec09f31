"""The reward model for scenes of shapes: which objects of the caption a picture shows right.

The caption is parsed, not embedded: each item becomes one query that states its colour, shape, size and place. A small
convolutional encoder turns the picture into a grid of tokens; the queries look at each other and at the grid, and each
answers with one logit, "this object is present, as stated, where stated, and whole". A further query answers for the
rest of the picture: no extra object, no stray paint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lotts.files import whole_folder
from lotts.shapes.reward_queries import GRID, QUERY_FEATURES, Queries
from lotts.shapes.scenes import COLOURS, SHAPES, SIZES

VERSION = 1
FOLDER = Path(__file__).parent / "weights" / "reward"
SCENE_WEIGHT = 0.3


@dataclass(frozen=True)
class RewardConfig:
    """``widths``: channels of the encoder at 64, 32 and 16 cells a side; the last is also the width of the decoder."""

    widths: tuple[int, int, int] = (24, 40, 96)
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or any(w % 8 for w in self.widths) or self.widths[-1] % self.heads or self.layers < 2:
            raise ValueError(
                f"expected three widths divisible by 8, the last by heads, and two layers or more, got {self}"
            )


@dataclass
class Answers:
    """Logits for B pictures: ``objects`` [B, 16] (meaningless on padding) and ``scene`` [B].

    ``seen`` holds what each query finds at its object, [B, 16, classes + 1] each for colour, shape and size (the last
    class: nothing there), and ``cells`` what each token of the grid shows, [B, GRID * GRID, ...]: colour and shape (the
    last class: ground) and damage. Both teach the model what to look at; neither enters the score.
    """

    objects: torch.Tensor
    scene: torch.Tensor
    seen: list[torch.Tensor]
    cells: list[torch.Tensor]


class RewardModel(nn.Module):
    """``forward(pictures, queries)``: pictures [B, 3, 128, 128] in [-1, 1]; returns one ``Answers`` a decoder layer.

    The last ``Answers`` is the model's; the earlier ones are there to be trained.
    """

    def __init__(self, config: RewardConfig | None = None) -> None:
        super().__init__()
        self.config = config or RewardConfig()
        width, heads = self.config.widths[-1], self.config.heads
        self.encoder = _Encoder(self.config.widths)
        self.position = nn.Parameter(0.02 * torch.randn(GRID * GRID, width))
        self.query = nn.Linear(QUERY_FEATURES, width)
        self.located = nn.Linear(4, width)
        self.scene_query = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(self.config.layers))
        self.claim, self.claimed = _Attention(width, heads), nn.Linear(2, width)
        counts = (len(COLOURS), len(SHAPES), len(SIZES))
        self.seen = nn.ModuleList(nn.Linear(width, count + 1) for count in counts)
        self.cells = nn.ModuleList(nn.Linear(width, count) for count in (counts[0] + 1, counts[1] + 1, 1))
        self.norm = nn.LayerNorm(width)
        self.object_head = nn.Sequential(nn.Linear(width + 3, width), nn.SiLU(), nn.Linear(width, 1))
        self.scene_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, pictures: torch.Tensor, queries: Queries) -> list[Answers]:
        tokens = self.encoder(pictures).flatten(2).transpose(1, 2)
        cells = [head(tokens) for head in self.cells]
        tokens = tokens + self.position
        near = torch.where(queries.placed[..., None], queries.near, _likeness(cells, queries.stated))
        x = self.query(queries.features) + self.located(_centres(near))
        x = torch.cat([x, self.scene_query.expand(len(x), 1, -1)], 1)
        painted = 1 - cells[0].detach().float().softmax(-1)[..., -1]
        claimed = near.masked_fill(~queries.real[..., None], -torch.inf).amax(1).clamp(min=-3)
        near, real = F.pad(near, (0, 0, 0, 1)), F.pad(queries.real, (0, 1), value=True)
        answers = []
        for index, layer in enumerate(self.layers):
            if index == len(self.layers) - 1:
                # Tokens learn which query accounts for them, so that paint that none accounts for shows.
                tokens = tokens + self.claimed(torch.stack([painted, claimed], -1))
                tokens = tokens + self.claim(tokens, x, near.transpose(1, 2), real)
            x = layer(x, tokens, near, real)
            answers.append(self._answer(self.norm(x), queries.stated, cells))
        return answers

    def _answer(self, x: torch.Tensor, stated: torch.Tensor, cells: list[torch.Tensor]) -> Answers:
        objects, scene = x[:, :-1], x[:, -1]
        seen = [head(objects) for head in self.seen]
        agreement = [
            F.log_softmax(s.float(), -1).gather(-1, stated[..., i : i + 1]).clamp(min=-8) for i, s in enumerate(seen)
        ]
        logits = self.object_head(torch.cat([objects, *(a.to(objects.dtype) for a in agreement)], -1))
        return Answers(logits[..., 0].float(), self.scene_head(scene)[..., 0].float(), seen, cells)


def _likeness(cells: list[torch.Tensor], stated: torch.Tensor) -> torch.Tensor:
    """[B, 16, GRID * GRID] in [-3, 0]: how far from an item's colour and shape each token is, by the model's own reading.

    It stands in for nearness where the caption states no place. Nothing is learned through it: cells are to report what
    they show, not what would be convenient.
    """
    total = torch.zeros((), device=stated.device)
    for column, logits in enumerate(cells[:2]):
        chances = logits.detach().float().log_softmax(-1).clamp(min=-6).transpose(1, 2)
        total = total + chances.gather(1, stated[..., column, None].expand(-1, -1, chances.shape[-1]))
    return total / 4


def _centres(near: torch.Tensor) -> torch.Tensor:
    """[B, 16, 4]: where each query's tokens lie on average, x and y in [-1, 1], and the same seen from the first item."""
    line = (torch.arange(GRID, device=near.device) + 0.5) * 2 / GRID - 1
    spots = torch.stack([line.repeat(GRID), line.repeat_interleave(GRID)], -1)
    centres = (8 * near).softmax(-1) @ spots
    return torch.cat([centres, centres - centres[:, :1]], -1)


def score(answers: Answers, real: torch.Tensor) -> torch.Tensor:
    """[B] scores in (-inf, 0]: the mean log-probability that an object is right, plus the weighted one of the rest."""
    objects = torch.where(real, F.logsigmoid(answers.objects), 0).sum(-1) / real.sum(-1)
    return objects + SCENE_WEIGHT * F.logsigmoid(answers.scene)


def wrong_cells(answers: Answers, queries: Queries) -> torch.Tensor:
    """[B, GRID, GRID] in [0, 1]: the chance that a token shows damage or belongs to an object that is not as stated."""
    damage = answers.cells[2][..., 0].float().sigmoid()
    wrong = torch.where(queries.real, 1 - answers.objects.sigmoid(), 0.0)
    near = torch.where(queries.placed[..., None], queries.near, _likeness(answers.cells, queries.stated))
    whole = (1 - damage) * (1 - wrong[..., None] * (4 * near).exp()).prod(1)
    return (1 - whole).view(-1, GRID, GRID)


def to_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def save(model: RewardModel, folder: Path = FOLDER) -> None:
    """Write ``config.json`` and ``model.safetensors`` (fp16)."""
    from safetensors.torch import save_file

    config = {"version": VERSION, **asdict(model.config)}
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    with whole_folder(folder) as fresh:
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, fresh / "model.safetensors")


def load(folder: Path = FOLDER) -> RewardModel:
    """The model that ``save`` wrote, in float32 and in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files are of another version of the model, or the tensors are not its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"the reward model lacks {folder / name}; python -m lotts.shapes.train verifier makes it"
            )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (version := config.pop("version", None)) != VERSION:
        raise ValueError(f"expected version {VERSION} of the reward model in {folder}, got {version}")
    model = RewardModel(RewardConfig(tuple(config["widths"]), config["layers"], config["heads"]))
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected {len(model.state_dict())} tensors of the reward model in {folder / 'model.safetensors'}, got: "
            f"{reason[:300]}; python -m lotts.shapes.train verifier makes them"
        ) from error
    return model.eval()


def version(folder: Path = FOLDER) -> str:
    """Which model and weights: their digest tells retrained ones apart."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return f"shapes-{VERSION} {digest[:8]}"


class _Encoder(nn.Module):
    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, fine, 3, padding=1),
            nn.GroupNorm(8, fine),
            nn.SiLU(),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            _Residual(middle),
            nn.GroupNorm(8, middle),
            nn.SiLU(),
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
            _Residual(coarse),
            nn.GroupNorm(8, coarse),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class _Attention(nn.Module):
    """Attention from ``x`` [B, N, D] to ``y`` [B, M, D], with a learned key to turn to where nothing fits.

    ``near`` [B, N, M] <= 0, weighed per head, draws heads to what is near; ``real`` bool [B, M] hides padding.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_y = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.focus = nn.Parameter(torch.linspace(0, 3, heads))

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, near: torch.Tensor | None = None, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, count = len(y), y.shape[1] + 1
        y = torch.cat([self.norm_y(y), self.nothing.expand(batch, 1, -1)], 1)
        k, v = self.kv(y).view(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = self.q(self.norm_x(x)).view(batch, x.shape[1], self.heads, -1).transpose(1, 2)
        bias = torch.zeros(batch, 1, 1, count, device=x.device, dtype=q.dtype)
        if real is not None:
            bias = bias.masked_fill(~F.pad(real, (0, 1), value=True)[:, None, None], -torch.inf)
        if near is not None:
            bias = bias + F.pad(near[:, None] * self.focus.exp()[:, None, None], (0, 1)).to(q.dtype)
        # One dense tensor: the fused kernels want every axis of the bias laid out.
        bias = bias.expand(batch, self.heads, x.shape[1], count)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.among, self.look = _Attention(width, heads), _Attention(width, heads)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, near: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        x = x + self.among(x, x, real=real)
        x = x + self.look(x, tokens, near)
        return x + self.think(x)
