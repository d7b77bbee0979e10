"""One step of any solver that is linear in its tensors."""

from __future__ import annotations

from torch import Tensor, nn


class SolverStep(nn.Module):
    """Guidance, the estimate of x0, and the next latents.

    Six coefficients a latent frame make it DPM-Solver++ 2M, flow Euler or re-noising; a frame
    that is given as condition keeps its value with a = 1 and b = c = n = 0.
    """

    def forward(
        self,
        latents: Tensor,
        velocity_negative: Tensor,
        velocity_positive: Tensor,
        previous_sample: Tensor,
        noise: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Five tensors f32 [B, C, T, H, W] and (guidance, sigma, a, b, c, n) f32 [T, 6].

        Returns:
            The next latents and the estimate of x0, both like ``latents``.
        """
        guidance, sigma, a, b, c, n = coefficients[:, :, None, None].unbind(1)
        velocity = velocity_negative + guidance * (velocity_positive - velocity_negative)
        sample = latents - sigma * velocity
        latents_out = a * latents + b * sample + c * (sample - previous_sample) + n * noise
        return latents_out, sample
