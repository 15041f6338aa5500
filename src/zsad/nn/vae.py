"""A small Gaussian variational autoencoder of feature vectors (Kingma and Welling, 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal distributions, one for each of B images.

    Attributes:
        mean: (B, Z).
        log_variance: (B, Z).

    Example:
        >>> prior = Gaussian(torch.zeros(5, 3), torch.zeros(5, 3))
        >>> float(prior.kl()), prior.sample(torch.ones(5, 3))[0].tolist()
        (0.0, [1.0, 1.0, 1.0])
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """`mean + exp(log_variance / 2) * noise` (B, Z) of standard normal noise of that shape."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def kl(self) -> Tensor:
        """`-1/2 sum_d (1 + log_variance - mean^2 - exp(log_variance))` against N(0, I), mean over images."""
        excess = self.mean.square() + self.log_variance.expm1() - self.log_variance
        return excess.sum(dim=-1).mean() / 2


class GaussianVAE(nn.Module):
    """Encoder `Linear-ReLU` with two heads, decoder `Linear-ReLU-Linear` that starts as zero.

    `mean, log_variance = Enc(x)`, `z = mean + exp(log_variance / 2) noise`, `b = Dec(z)`.

    Args:
        width: of what is encoded.
        decoded: width of what is decoded.
        hidden: width of both hidden layers.
        latent: Z, width of z.

    Example:
        >>> vae = GaussianVAE(8, 6, hidden=7, latent=3)
        >>> posterior = vae.encode(torch.randn(5, 8))
        >>> decoded = vae.decode(posterior.sample(torch.randn(5, 3)))
        >>> decoded.shape, bool(decoded.any())
        (torch.Size([5, 6]), False)
    """

    def __init__(self, width: int, decoded: int, *, hidden: int, latent: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decode_hidden = nn.Linear(latent, hidden)
        self.decode_out = nn.Linear(hidden, decoded)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The start of `nn.Linear`, except that the decoder's last layer is zero: what it decodes is, too."""
        for linear in (self.hidden, self.mean, self.log_variance, self.decode_hidden):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
        nn.init.zeros_(self.decode_out.weight)
        nn.init.zeros_(self.decode_out.bias)

    def encode(self, x: Tensor) -> Gaussian:
        """The posterior of z for x (B, width)."""
        hidden = self.hidden(x).relu()
        return Gaussian(self.mean(hidden), self.log_variance(hidden))

    def decode(self, z: Tensor) -> Tensor:
        """(..., decoded) of z (..., Z)."""
        decoded: Tensor = self.decode_out(self.decode_hidden(z).relu())
        return decoded
