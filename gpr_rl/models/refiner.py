"""Refining: diffusion in embedding space makes one token out of the thinking tokens (GPR 2.2).

The paper names a noise generator and a reverse process whose denoiser is a Transformer conditioned
on the sum-pooled thinking tokens, and nothing more. Decided here: the cosine schedule (Nichol and
Dhariwal 2021), the error of the predicted noise as loss (Ho et al. 2020), the noise predicted by
way of the velocity (Salimans and Ho 2022), a deterministic reverse process of few steps (DDIM, Song
et al. 2021, eta 0), and that the answer never reaches the generation stage: `forward`, all that
this stage sees in training as at inference, knows the thinking tokens only.

Dims: B sequences, S states per sequence, N rows, V codes, L levels, D width, H heads.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpr_rl.models.config import HHDConfig
from gpr_rl.models.layers.transformer import TransformerBlock


class Denoiser(nn.Module):
    """Predicts the noise in x_t from [pooled thinking tokens, noise level, x_t].

    The network gives the velocity v, and the noise is sqrt(1 - a_t) x_t + sqrt(a_t) v. An error of
    the noise itself would enter x_0 1 / sqrt(a_t) times at the first step of the reverse process.
    """

    kept: Tensor

    def __init__(self, config: HHDConfig) -> None:
        super().__init__()
        dim = config.dim
        self.condition = nn.Linear(dim, dim)
        self.level = nn.Parameter(torch.randn(config.num_noise_steps, dim) * dim**-0.5)
        self.noisy = nn.Linear(dim, dim)
        self.layers = nn.ModuleList(
            TransformerBlock(dim, config.num_heads, config.ffn_dim, activation=F.silu, causal=False)
            for _ in range(config.num_denoiser_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.register_buffer("kept", signal_share(config.num_noise_steps), persistent=False)

    def forward(
        self,
        noisy: Float[Tensor, "N D"],
        step: Int[Tensor, " N"],
        thought: Float[Tensor, "N D"],
    ) -> Float[Tensor, "N D"]:
        """Return the noise that x_t at noise level `step` holds, by the thinking tokens' lights."""
        x = torch.stack([self.condition(thought), self.level[step], self.noisy(noisy)], dim=1)
        for layer in self.layers:
            x = layer(x)
        velocity, kept = self.output(self.norm(x[:, 2])), self.kept[step, None]
        return (1 - kept).sqrt() * noisy + kept.sqrt() * velocity


class Refiner(nn.Module):
    """The denoiser, its loss, and the reverse process that gives the refining token.

    Differs from the paper, in whose training the process may start from the answer's own noise: it
    starts from the pooled thinking tokens plus one fixed noise vector, the same for every row.
    """

    noise: Tensor
    kept: Tensor

    def __init__(self, config: HHDConfig) -> None:
        super().__init__()
        self.denoiser = Denoiser(config)
        self.output = nn.Linear(config.dim, config.dim)
        self.register_buffer("noise", torch.randn(config.dim))
        self.register_buffer("kept", signal_share(config.num_noise_steps), persistent=False)
        steps = torch.linspace(config.num_noise_steps - 1, 0, config.num_refining_steps)
        self.steps: Sequence[int] = steps.round().long().tolist()

    def forward(self, thought: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Return the refining token of each state from the sum of its thinking outputs.

        No gradient passes the process: the denoiser learns from its own loss, the map of its
        result into the decoder from the decoder's.
        """
        with torch.no_grad():
            refined = self.reverse(thought.flatten(0, 1))
        return self.output(refined).view_as(thought)

    def reverse(self, thought: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return x_0 of unit variance by DDIM with eta 0.

        x_0 = unit((x_t - sqrt(1 - a_t) e) / sqrt(a_t)), x_t' = sqrt(a_t') x_0 + sqrt(1 - a_t') e,
        with e the predicted noise. Every x_0 of training has unit variance, so the estimate is
        brought to it, where DDPM clips pixels.
        """
        x, clean, noise = thought + self.noise, thought, None
        for step in self.steps:
            kept = self.kept[step]
            if noise is not None:
                x = kept.sqrt() * clean + (1 - kept).sqrt() * noise
            at = torch.full_like(thought[:, 0], step, dtype=torch.int64)
            noise = self.denoiser(x, at, thought)
            clean = unit_variance((x - (1 - kept).sqrt() * noise) / kept.sqrt())
        return clean

    def loss(
        self,
        thought: Float[Tensor, "B S D"],
        target: Float[Tensor, "B S D"],
        valid: Bool[Tensor, "B S"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of the predicted noise; it moves the denoiser alone.

        x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, t uniform, e standard normal (Ho et al. 2020, Eq.
        14), x_0 from `target`, the sum of the code embeddings of each state's next ad, by the light
        of `DecoderState.thought`. Without any valid state the loss is 0.
        """
        condition = thought[valid].detach()
        clean = unit_variance(target[valid].detach())
        place = clean.device if generator is None else generator.device
        step = torch.randint(len(self.kept), clean.shape[:1], generator=generator, device=place)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=place)
        step, noise = step.to(clean.device), noise.to(clean.device)
        kept = self.kept[step, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        error = self.denoiser(noisy, step, condition) - noise
        return error.square().sum() / max(1, error.numel())


def signal_share(num_steps: int) -> Float[Tensor, " num_steps"]:
    """Return a_t, the share of x_0 in the variance of x_t: cos^2 of t evenly inside (0, pi / 2)."""
    step = torch.arange(1, num_steps + 1, dtype=torch.float64)
    return (step / (num_steps + 1) * math.pi / 2).cos().square().float()


def unit_variance(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Return rows scaled to mean square 1; zero stays zero."""
    tiny = torch.finfo(x.dtype).tiny
    return x * x.square().mean(-1, keepdim=True).clamp_min(tiny).rsqrt()


def path_embedding(
    table: Float[Tensor, "LV D"], codes: Int[Tensor, "*rows L"]
) -> Float[Tensor, "*rows D"]:
    """Return the sum of a path's code embeddings, from a table with a range of codes per level."""
    levels = codes.shape[-1]
    start = torch.arange(levels, device=codes.device) * (len(table) // levels)
    return F.embedding(codes + start, table).sum(-2)
