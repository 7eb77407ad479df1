"""An epoch of the paper's Swin: FP4 beside BF16, and BF16 beside the same network in plain torch and a bare loop.

    python benchmarks/paper_epoch.py                 # paper_swin 500k, 128 x 128, batch 32, about three minutes

The peer is the network of arXiv 2605.27616 as one would write it with torch alone, with the same weights: torch's
`scaled_dot_product_attention`, which is fused where dropout allows it, a loop of forward, loss, backward, clipping and
fused AdamW, nothing recorded. Before anything is timed its logits are compared with ours. Ours is the bundle's trainer:
MONAI's engine with `TrainingStep`, as the protocol sets it, under each recipe. Contestants take turns, an epoch each,
and a ratio is the median of the ratios within the rounds. The batches are random and lie in memory: reading is measured
by `reading.py`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, Results, default_device, in_turns, refuse_plain_torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_fp4 import build_network, convert
from monai_fp4.engines import TrainingStep
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import find_cell
from monai_fp4.networks.configs import PaperTransformerConfig
from monai_fp4.optimizers import paper_optimizer

PEER, BASELINE = "plain torch, bare loop, bf16", "bf16"
DROPOUT = 0.1
NAMES = {
    "attention.relative_position_bias_table": "table",
    "attention.": "",
    "mlp.linear1": "fc1",
    "mlp.linear2": "fc2",
}
"""Parts of our parameters' names, and what the peer calls them."""
Batches = list[dict[str, Tensor]]


class Block(nn.Module):
    """A pre-norm block with attention in windows; its parameters stand in the order of the paper's."""

    def __init__(self, width: int, heads: int, hidden: int, window: int, side: int, shift: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.proj, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.heads, self.window, self.side, self.shift, self.drop = heads, window, side, shift, drop
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        row, column = (place[:, :, None] - place[:, None, :]) + window - 1
        self.index: Tensor
        self.register_buffer("index", row * (2 * window - 1) + column, persistent=False)
        self.register_buffer("mask", self._mask(), persistent=False)

    def _mask(self) -> Tensor:
        label = torch.zeros(self.side)
        if self.shift:
            label[-self.window :], label[-self.shift :] = 1, 2
        windows = self._windows((label[:, None] * 3 + label)[None, :, :, None])[..., 0]
        return -100.0 * (windows[:, None, :] != windows[:, :, None])

    def _windows(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        count, size = side // self.window, self.window
        return x.view(batch, count, size, count, size, width).transpose(2, 3).reshape(-1, size * size, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[B, N, C]``."""
        batch, _, width = x.shape
        side, count, size = self.side, self.side // self.window, self.window
        y = self.norm1(x).view(batch, side, side, width).roll((-self.shift, -self.shift), (1, 2))
        q, k, v = self.qkv(self._windows(y)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].permute(2, 0, 1) + self.mask[:, None]
        bias = bias.to(q.dtype).repeat(batch, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, bias, DROPOUT if self.training else 0.0)
        y = F.dropout(self.proj(y.transpose(1, 2).flatten(2)), DROPOUT, self.training)
        y = y.view(batch, count, count, size, size, width).transpose(2, 3).reshape(batch, side, side, width)
        x = x + self._keep(y.roll((self.shift, self.shift), (1, 2)).view_as(x))
        y = F.dropout(F.gelu(self.fc1(self.norm2(x))), DROPOUT, self.training)
        return x + self._keep(F.dropout(self.fc2(y), DROPOUT, self.training))

    def _keep(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return x
        return x / (1 - self.drop) * (1 - self.drop + torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device)).floor()


class PlainSwin(nn.Module):
    """The paper's Swin in plain torch: ``[B, 3, S, S]`` to logits ``[B, 1, S, S]``."""

    def __init__(self, scale: str, side: int) -> None:
        super().__init__()
        config = find_cell("paper_swin", scale).config
        assert isinstance(config, PaperTransformerConfig) and config.window_size
        width, grid, window = config.width, side // 16, config.window_size
        self.patch, self.patch_norm = nn.Conv2d(3, width, 16, 16), nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.zeros(1, grid**2, width))
        drops = torch.linspace(0, DROPOUT, config.depth).tolist()
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.hidden, window, grid, window // 2 * (number % 2), drop)
            for number, drop in enumerate(drops)
        )
        self.norm, self.grid = nn.LayerNorm(width), grid
        stages: list[nn.Module] = []
        for old, new in zip((width, *config_widths(width)), config_widths(width), strict=False):
            groups = next(count for count in range(8, 0, -1) if new % count == 0)
            stages += [nn.ConvTranspose2d(old, new, 2, 2), nn.GroupNorm(groups, new), nn.GELU()]
        self.decoder = nn.Sequential(*stages, nn.Conv2d(config_widths(width)[-1], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Segment."""
        x = self.patch_norm(self.patch(x).flatten(2).mT) + self.positions
        x = F.dropout(x, DROPOUT, self.training)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.decoder(self.norm(x).mT.unflatten(2, (self.grid, self.grid)))
        return logits


def config_widths(width: int) -> list[int]:
    """Channels of the decoder's four stages."""
    return [max(8, width // 2**stage) for stage in range(1, 5)]


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """BCE and Tversky an image, logits within +-20."""
    logits = logits.float().clamp(-20, 20)
    p, y = logits.sigmoid().flatten(1), labels.flatten(1)
    true, predicted, positive = (p * y).sum(1), p.sum(1), y.sum(1)
    tversky = (true + 1e-5) / (true + 0.3 * (predicted - true) + 0.7 * (positive - true) + 1e-5)
    return F.binary_cross_entropy_with_logits(logits, labels) + 1 - tversky.mean()


def same_as(ours: nn.Module, scale: str, images: Tensor) -> nn.Module:
    """Build the peer with our weights.

    Raises:
        SystemExit: when the two do not agree, so that nothing is measured.
    """
    plain = PlainSwin(scale, images.shape[-1]).to(images)
    weights = dict(ours.named_parameters())
    for theirs, own in NAMES.items():
        weights = {name.replace(theirs, own): weight for name, weight in weights.items()}
    plain.load_state_dict(weights)
    with torch.no_grad():
        difference = (plain.eval()(images) - ours.eval()(images)).abs().max().item()
    if difference > 1e-4:
        raise SystemExit(f"the plain network's logits differ from ours by {difference}: nothing was measured")
    return plain


def bare_loop(network: nn.Module, batches: Batches) -> Callable[[], None]:
    """An epoch in plain torch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)

    def epoch() -> None:
        network.train()
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(batch["image"].device.type, dtype=torch.bfloat16):
                logits = network(batch["image"])
            loss = plain_loss(logits, batch["label"])
            loss.backward()
            loss.item()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    return epoch


def bundle_loop(network: nn.Module, recipe: str, batches: Batches) -> Callable[[], None]:
    """An epoch of the bundle's trainer under a recipe."""
    network, _ = convert(network, recipe)
    trainer = SupervisedTrainer(
        device=batches[0]["image"].device,
        max_epochs=1,
        train_data_loader=batches,
        epoch_length=len(batches),
        network=network,
        optimizer=paper_optimizer(network.parameters(), "adamw", 1e-4),
        loss_function=TverskyBCELoss(batch=False, max_logit=20.0),
        iteration_update=TrainingStep(max_grad_norm=1.0, skip_nonfinite=True),
    )
    return trainer.run


def main() -> None:
    """Measure, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["full", "sr_rht_2d"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "paper_epoch.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = {name: value for name, value in vars(options).items() if name != "output"}
    results = Results(options.output, options.device, protocol)
    torch.manual_seed(0)
    size = (options.batch_size, 3, options.image_size, options.image_size)
    batches = [
        {"image": torch.randn(size), "label": (torch.rand(size[0], 1, *size[2:]) > 0.97).float()}
        for _ in range(options.batches)
    ]
    batches = [{key: value.to(options.device) for key, value in batch.items()} for batch in batches]

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build_network("paper_swin", options.scale, image_size=size[2:], in_channels=3).to(options.device)

    epochs = {PEER: bare_loop(same_as(network(), options.scale, batches[0]["image"]), batches)}
    epochs |= {name: bundle_loop(network(), name, batches) for name in [BASELINE, *options.recipes]}
    seconds = in_turns(epochs, options.rounds, options.device)
    cells = []
    for name, times in seconds.items():
        peer = {PEER: None, BASELINE: PEER}.get(name, BASELINE)
        ratios = [a / b for a, b in zip(times, seconds[peer or name], strict=True)]
        cells.append(
            {
                "name": name,
                "seconds": [round(value, 4) for value in times],
                "beside": peer,
                "ratio": None if peer is None else round(statistics.median(ratios), 4),
            }
        )
        print(
            f"{name:28} {statistics.median(times):7.3f} s" + (f", {cells[-1]['ratio']:.2f} of {peer}" if peer else "")
        )
    results.write({"cells": cells})
    refuse_plain_torch()


if __name__ == "__main__":
    main()
