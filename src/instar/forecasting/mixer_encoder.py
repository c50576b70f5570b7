"""A token mixer of the catalogue as the encoder of a forecaster: patches of each series, blocks around the mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.catalogue import Build
from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting.neural import NeuralForecaster
from instar.forecasting.patches import PatchNetwork
from instar.interfaces import Mixer
from instar.models.decoder import Block


class MixerBlocks(nn.Module):
    """Pre-norm blocks of a mixer and SwiGLU, and RMSNorm, on [B, P, D]. A mixer that is a whole network stands alone."""

    def __init__(self, build: Build, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        whole = bool(build.card.capability("whole_network"))
        mixers = [build(width, heads=heads) for _ in range(1 if whole else depth)]
        self.blocks = nn.ModuleList(mixers if whole else [Block(mixer, width, hidden) for mixer in mixers])
        self.norm = nn.Identity() if whole else nn.RMSNorm(width, eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z, _ = block(z, None, mask=None, reset=None)
        return self.norm(z)


class MixerEncoder(NeuralForecaster):
    r"""PatchTST whose attention is any mixer: ŷ = σ · W flatten(blocks(E patches(x̃) + positions)) + μ, each series alone.

    Args:
        horizon: H. context: L. mixer: an address of the catalogue. patch, stride: rows of a patch and between two. width, depth,
            heads: of the blocks. hidden: of SwiGLU. lr, batch: of training.

    The head reads all positions, so that mixers that read one side and both meet on equal terms. Raises ShapeError,
    UnknownNameError.
    """

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        mixer: str = "softmax",
        patch: int = 16,
        stride: int = 8,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 64,
        lr: float = 1e-3,
        batch: int = 32,
    ) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.mixer, self.patch, self.stride = mixer, patch, stride
        self.width, self.depth, self.heads, self.hidden = width, depth, heads, hidden
        address = catalogue.parse(mixer)
        self.mixing = Build(address.card, catalogue.load(address.card), address.arguments)
        if not issubclass(self.mixing.cls, Mixer):
            raise ShapeError(f"An encoder is a mixer of the catalogue; {mixer} is a {address.card.interface}.")
        with torch.random.fork_rng(devices=[]):
            self._network()  # refuses what cannot be built before any data are read

    @classmethod
    def around(cls, mixing: Build, horizon: int, context: int, **sizes: int) -> MixerEncoder:
        """Around a mixer that is already chosen, with arguments of its own."""
        made = cls(horizon, context=context, mixer=mixing.card.slug, **sizes)
        made.mixing = mixing
        return made

    def build(self, panel: Panel) -> nn.Module:
        return self._network()

    def _network(self) -> PatchNetwork:
        encoder = MixerBlocks(self.mixing, self.width, self.depth, self.heads, self.hidden)
        return PatchNetwork(
            encoder,
            self.context,
            self.horizon,
            width=self.width,
            patch=self.patch,
            stride=self.stride,
            dropout=0.0,
        )
