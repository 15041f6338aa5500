"""The autoencoder's posterior, its divergence against sampling and PyTorch, and what reaches the encoder."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from zsad.nn.vae import Gaussian, GaussianVAE


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vae() -> GaussianVAE:
    module = GaussianVAE(6, 5, hidden=8, latent=3).double()
    module.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.decode_out.weight.copy_(randn(5, 8, seed=1))
    return module


def test_divergence_is_that_of_normal_distributions_summed_over_dimensions_mean_over_images():
    posterior = Gaussian(randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_())
    theirs = kl_divergence(
        Normal(posterior.mean, (posterior.log_variance / 2).exp()), Normal(torch.zeros(4, 3), 1.0)
    )
    forms = posterior.kl(), theirs.sum(1).mean()
    torch.testing.assert_close(*forms, atol=1e-12, rtol=0)
    inputs = posterior.mean, posterior.log_variance
    for pair in zip(*(torch.autograd.grad(form, inputs) for form in forms), strict=True):
        torch.testing.assert_close(*pair, atol=1e-12, rtol=0)


def test_divergence_vanishes_at_the_prior_and_there_alone():
    zero = torch.zeros(4, 3)
    assert float(Gaussian(zero, zero).kl()) == 0
    for mean, log_variance in ((zero + 0.1, zero), (zero, zero + 0.1), (zero, zero - 0.1)):
        assert float(Gaussian(mean, log_variance).kl()) > 1e-3


def test_samples_have_the_posterior_s_mean_and_deviation():
    posterior = Gaussian(randn(2, 3), randn(2, 3, seed=1))
    samples = posterior.sample(randn(20000, 2, 3, seed=2))
    torch.testing.assert_close(samples.mean(0), posterior.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), (posterior.log_variance / 2).exp(), atol=0.05, rtol=0)


def test_gradients_reach_the_encoder_through_z():
    module = vae()
    posterior = module.encode(randn(4, 6))
    module.decode(posterior.sample(randn(4, 3, seed=3))).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_decodes_zero_at_the_start_whatever_z():
    module = GaussianVAE(6, 5, hidden=8, latent=3)
    assert torch.equal(module.decode(torch.randn(4, 3)), torch.zeros(4, 5))
    module.decode(torch.randn(4, 3)).sum().backward()
    assert module.decode_out.weight.grad is not None and module.decode_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seeded_generator_makes_the_same_start(seed):
    first, second = GaussianVAE(6, 5, hidden=8, latent=3), GaussianVAE(6, 5, hidden=8, latent=3)
    for module in (first, second):
        module.reset_parameters(torch.Generator().manual_seed(seed))
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))
    assert first.hidden.weight.abs().max() <= 6**-0.5
