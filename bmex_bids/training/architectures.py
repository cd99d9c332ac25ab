"""Networks to be trained: freshly initialised, and started from what another has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bmex_bids.duncan import SlicePair
from bmex_bids.networks import TissueGuidedUNet
from bmex_bids.weights import ModelRecord, WeightsError, new_network

__all__ = [
    "at_scale_one", "averaged_state", "build", "freeze_unweighted", "groups", "take_over",
    "to_training",
]  # fmt: skip

FIRST = ("enhance.down.0.conv1.weight", "enhance.plane.down.0.conv1.weight")
"""The enhancer's first layer, of volumes and of slices."""


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """The network of an architecture entry, freshly initialised.

    Leaky-ReLU Kaiming weights; the enhancer's last layer starts near zero, so that the pair starts
    as the identity where it predicts a difference.

    Raises:
        WeightsError: the entry is of no network that there is.
    """
    network = new_network(architecture, "the network's settings")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and not isinstance(network, SlicePair):
            nn.init.kaiming_normal_(module.weight, a=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(network, TissueGuidedUNet):
        nn.init.normal_(network.enhance.last.weight, std=1e-3)  # type: ignore[arg-type]
    return network


def averaged_state(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or a model's weights, by the network's own names."""
    if checkpoint.suffix == ".safetensors":
        return {key: value.float() for key, value in load_file(checkpoint).items()}
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    return {k.removeprefix("module."): v for k, v in state.items() if k != "n_averaged"}


def at_scale_one(state: Mapping[str, Tensor], record: ModelRecord) -> dict[str, Tensor]:
    """Weights of a model as they are for an input whose median is 1, as samples have it.

    The published pairs want an input of their own scale. What they multiply it with is multiplied
    by that scale, and their last batch normalisation divided by it: the same network.

    Raises:
        WeightsError: a model of another scale that is not such a pair.
    """
    scaled = dict(state)
    if record.scale == 1.0:
        return scaled
    if record.architecture["name"] != "BMEXPair":
        raise WeightsError(f"{record.name}: training cannot start from a model of scale "
                           f"{record.scale:g}; choose one of scale 1")
    for name in ("conv1.weight", "conv2_con.weight"):
        scaled[name] = state[name] * record.scale
    for name in ("bn32_recon.weight", "bn32_recon.bias"):
        scaled[name] = state[name] / record.scale
    return scaled


def take_over(network: nn.Module, given: Mapping[str, Tensor]) -> tuple[int, int]:
    """Set every weight that is there under the same name, as far as its shape reaches.

    Of a layer that grew, the part that both have is set; what is new keeps its first values, and
    new inputs of the enhancer begin without effect. An enhancer of slices takes nothing over from
    one of volumes, nor the other way round.

    Returns:
        How many were taken over, in whole or in part, and how many the network has.
    """
    own = {key: value.clone() for key, value in network.state_dict().items()}
    taken = 0
    other = {
        key.split(".")[0] for key, value in given.items()
        if key in own and own[key].dim() != value.dim()
    }
    for key, value in given.items():
        if key not in own or key.split(".")[0] in other:
            continue
        if own[key].shape != value.shape and key in FIRST:
            own[key].zero_()
        cut = tuple(slice(min(a, b)) for a, b in zip(own[key].shape, value.shape, strict=True))
        own[key][cut] = value[cut].to(own[key])
        taken += 1
    network.load_state_dict(own)
    return taken, len(own)


def groups(
    network: nn.Module, enhance_share: float
) -> tuple[list[list[nn.Parameter]], list[float]]:
    """Trainable parameters with the same share of the learning rate, and that share.

    In a pair the enhancer, whose last layers have no normalisation, wants a lower rate than the
    classifier.
    """
    parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts[_of_enhancer(name)].append(parameter)
    shares = {False: 1.0, True: enhance_share}
    there = [part for part, parameters in parts.items() if parameters]
    return [parts[part] for part in there], [shares[part] for part in there]


def freeze_unweighted(network: nn.Module, tissue_weight: float, enhance_weight: float) -> None:
    """Keep the half of a pair as it is whose loss has the weight 0."""
    for name, parameter in network.named_parameters():
        if not (enhance_weight if _of_enhancer(name) else tissue_weight):
            parameter.requires_grad_(False)


def to_training(network: nn.Module) -> nn.Module:
    """Set to training what is trained: a frozen batch norm keeps its statistics, too."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d) and not module.weight.requires_grad:
            module.eval()
    return network


def _of_enhancer(name: str) -> bool:
    first = name.split(".")[0]
    return first == "enhance" or first.endswith(("_recon", "_con"))
