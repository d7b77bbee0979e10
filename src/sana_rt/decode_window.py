"""How a decoder is called: latent frames in, video frames out, call by call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sana_rt.model_spec import Count, Frozen, LTX2VAESpec, Natural, VAESpec, WanVAESpec
from sana_rt.signatures import wan_cache_count


class DecodeWindow(Frozen, frozen=True):
    """How the autoencoder's decoder turns latent frames into video frames, call by call.

    Every call takes ``latent_frames`` new ones, sees the ``lookback`` before them and the
    ``lookahead`` behind them as well, gives ``frames``, and hands ``caches`` tensors to the next.
    The first call is another graph. ``blend`` frames fade from what a call makes of its lookahead
    to what the next one makes of the same frames. At the end of a clip a call sees what is left.
    """

    latent_frames: Count
    frames: Count
    first_latent_frames: Count
    first_frames: Count
    lookahead: Natural
    caches: Natural
    lookback: Natural = 0
    blend: Natural = 0

    @property
    def seen(self) -> int:
        """Latent frames that a later call sees, away from the end of the clip."""
        return self.lookback + self.latent_frames + self.lookahead

    @property
    def first_seen(self) -> int:
        """Latent frames that the first call sees."""
        return self.first_latent_frames + self.lookahead

    def sees(self, new: range, latent_frames: int) -> range:
        """What the call that decodes ``new`` sees of a clip of ``latent_frames``."""
        before = self.lookback if new.start else 0
        return range(new.start - before, min(new.stop + self.lookahead, latent_frames))

    def call(self, latent_frame: int) -> int:
        """Which call, from 0, decodes a latent frame of the clip."""
        return max(0, latent_frame - self.first_latent_frames + self.latent_frames) // (
            self.latent_frames
        )

    def calls(self, latent_frames: range) -> Iterator[range]:
        """The new latent frames of each call that decodes a stretch which begins at a call."""
        start = latent_frames.start
        while start < latent_frames.stop:
            stop = start + (self.latent_frames if start else self.first_latent_frames)
            yield range(start, stop)
            start = stop


class Misfit(NamedTuple):
    """A field of a window that does not fit the others or the autoencoder."""

    field: str
    value: int
    expected: str


def misfits(window: DecodeWindow, vae: VAESpec) -> Iterator[Misfit]:
    """What no decoder of ``vae`` can do."""
    exact = {
        "first_frames": vae.video_frames(window.first_latent_frames),
        "frames": window.latent_frames * vae.temporal_stride,
    }
    if isinstance(vae, WanVAESpec):
        exact["caches"] = wan_cache_count(vae)
    if isinstance(vae, LTX2VAESpec):
        exact["caches"] = int(window.blend > 0)
    for name, wanted in exact.items():
        if (found := getattr(window, name)) != wanted:
            yield Misfit(name, found, f"{wanted:,}, which follows from model.vae")
    most = min(window.latent_frames, window.lookahead) * vae.temporal_stride
    if window.blend > most:
        what = "the frames that a call gives and those that it looks ahead"
        yield Misfit("blend", window.blend, f"at most {most:,}: both {what}")
    if window.lookback > window.first_latent_frames:
        most = window.first_latent_frames
        yield Misfit("lookback", window.lookback, f"at most {most:,}, its first_latent_frames")
    if isinstance(vae, LTX2VAESpec) and not window.lookback:
        yield Misfit("lookback", 0, "1 or more: the first latent frame of a call is one frame")
