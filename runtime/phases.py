"""The phases of a clip, in the order in which they run, and what each needs of the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sana_rt import geometry, graph_names
from sana_rt.errors import RequestError
from sana_rt.runtime import prompts
from sana_rt.runtime.autoencoder import Decoder, ImageEncoder, ways
from sana_rt.runtime.denoiser import Denoiser
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.job import Job
from sana_rt.runtime.memory import Phase, Region, weight_bytes

TEXT_ENCODER: Final = "text encoder"
IMAGE_ENCODER: Final = "image encoder"
TRANSFORMER: Final = "transformer"
DECODER: Final = "decoder"

_ENCODER_GRAPHS: Final = (graph_names.TEXT_ENCODER,)
_IMAGE_GRAPHS: Final = (graph_names.ENCODER,)


@dataclass(frozen=True)
class Planner:
    """Plans jobs on ``graphs``; ``sizes`` are the bytes of the bundle's files.

    With ``keep_text_encoder`` it stays for the next clip, also beside one that has no prompts.
    """

    graphs: Graphs
    sizes: Mapping[str, int]
    keep_text_encoder: bool

    def ways(self, job: Job) -> tuple[type[Decoder], ...]:
        """The ways to decode a job, the one that takes the most memory first.

        Raises :class:`RequestError` if there is none.
        """
        if self.graphs.decoder is None:
            raise RequestError(
                f"The bundle has no autoencoder ({job.model.vae.kind!r} is not exported).",
                expected="a request for latents only.",
                remedy="save the latents (--save-latents) and decode them elsewhere.",
            )
        return ways(self.graphs, job.chunks)

    def phases(self, job: Job, way: type[Decoder] | None) -> tuple[Phase, ...]:
        """The phases of a job that is decoded in a ``way``, or not at all.

        Raises :class:`RequestError` if the bundle lacks a part.
        """
        return tuple(self._phases(job, way))

    def _phases(self, job: Job, way: type[Decoder] | None) -> Iterator[Phase]:
        graphs, transformer = self.graphs, job.model.transformer
        blocks = transformer.num_layers
        graphs.signature(graph_names.block(0))  # all blocks are there, or none
        if job.prompts:
            yield self._phase(TEXT_ENCODER, _ENCODER_GRAPHS, prompts.encoder_regions(graphs))
        elif self.keep_text_encoder and graph_names.TEXT_ENCODER in graphs.signatures:
            yield self._phase(TEXT_ENCODER, _ENCODER_GRAPHS, ())
        if job.condition_frames:
            _check_encoder(graphs)
            yield self._phase(IMAGE_ENCODER, _IMAGE_GRAPHS, ImageEncoder.regions(graphs))
        yield self._phase(
            TRANSFORMER,
            graph_names.transformer(blocks),
            (
                *prompts.projection_regions(graphs),
                *Denoiser.regions(graphs, blocks_with_state=blocks if transformer.causal else 1),
            ),
            recurs=transformer.causal,
        )
        if way is not None:
            request = job.request
            frames = geometry.video_frames(job.model, job.longest)
            expected = way.activations(job.model, frames, request.height * request.width)
            phase = self._phase(DECODER, way.names, way.regions(graphs), recurs=transformer.causal)
            yield replace(phase, expected_activations=expected)

    def _phase(
        self,
        name: str,
        names: tuple[str, ...],
        regions: tuple[Region, ...],
        *,
        recurs: bool = False,
    ) -> Phase:
        entries = {each: self.graphs.signature(each) for each in names}
        weights = weight_bytes(self.sizes, entries)
        activations = self.graphs.activation_bytes(names)
        contexts = self.graphs.context_bytes * len(names)
        return Phase(name, weights, regions, activations, contexts, recurs)


def _check_encoder(graphs: Graphs) -> None:
    if graph_names.ENCODER not in graphs.signatures:
        raise RequestError(
            "The bundle cannot encode an image: it has no graph 'vae_encoder'.",
            remedy="leave the image out, or export a checkpoint with its autoencoder.",
        )
