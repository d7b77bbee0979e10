"""The phases of a clip, in the order in which they run, and what each needs of the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sana_rt import graph_names
from sana_rt.errors import RequestError
from sana_rt.runtime import prompts
from sana_rt.runtime.autoencoder import Decoder, ImageEncoder, check_chunks
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
_DECODER_GRAPHS: Final = (graph_names.DECODER_FIRST, graph_names.DECODER)


@dataclass(frozen=True)
class Planner:
    """Plans jobs on ``graphs``; ``sizes`` are the bytes of the bundle's files.

    With ``keep_text_encoder`` it stays for the next clip, also beside one that has no prompts.
    """

    graphs: Graphs
    sizes: Mapping[str, int]
    keep_text_encoder: bool

    def phases(self, job: Job, *, decode: bool) -> tuple[Phase, ...]:
        """The phases of a job.

        Raises :class:`RequestError` if the bundle lacks a part, or cannot decode chunk by chunk.
        """
        return tuple(self._phases(job, decode=decode))

    def _phases(self, job: Job, *, decode: bool) -> Iterator[Phase]:
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
        if decode:
            _check_decoder(graphs, job)
            regions = Decoder.regions(graphs)
            yield self._phase(DECODER, _DECODER_GRAPHS, regions, recurs=transformer.causal)

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


def _check_decoder(graphs: Graphs, job: Job) -> None:
    if graphs.decoder is None:
        raise RequestError(
            f"The bundle has no autoencoder ({job.model.vae.kind!r} is not exported).",
            expected="a request for latents only.",
            remedy="save the latents (--save-latents) and decode them elsewhere.",
        )
    check_chunks(graphs, job.chunks)


def _check_encoder(graphs: Graphs) -> None:
    if graph_names.ENCODER not in graphs.signatures:
        raise RequestError(
            "The bundle cannot encode an image: it has no graph 'vae_encoder'.",
            remedy="leave the image out, or export a checkpoint with its autoencoder.",
        )
