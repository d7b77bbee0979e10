"""A bundle of full-width graphs with random weights: what a model compiles to, without it.

The graphs of a model are alike, layer by layer: all blocks are the files of one, and two text
encoders, of one layer and of two, tell what a layer adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import torch

from sana_rt import __version__, graph_names
from sana_rt.bundle import Bundle, describe, save
from sana_rt.export import autoencoders
from sana_rt.export.graph_definition import GraphDefinition
from sana_rt.export.graphs import (
    text_encoder_graph,
    transformer_graphs,
    vae_graphs,
)
from sana_rt.export.onnx_export import TRACE_SIZES, write_graph
from sana_rt.export.seeded import seeded_tensor
from sana_rt.export.trace import trace
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.graph_names import ENCODER, PROMPT
from sana_rt.manifest import FORMAT, FORMAT_VERSION, Manifest, Source, Variant
from sana_rt.model_spec import ModelSpec

VARIANT: Final = "bf16"
#: The text encoder with two layers; ``text_encoder`` has one.
TWO_LAYERS: Final = "text_encoder_2"

_SOURCE: Final = Source("random weights", "random", "0" * 64)

#: Rows of the embedding table. One row is read a token; a table of full size would count as
#: read in full.
VOCABULARY: Final = 1024


def write(root: Path, model: ModelSpec, report: Callable[[str], None]) -> Bundle:
    """Write ``model``, with one file for all blocks, as the variant of a new bundle at ``root``.

    Graphs of an autoencoder whose architecture is not known here are left out.
    """
    small = with_layers(model, blocks=1, text=1)
    graphs = {}
    for definition in _definitions(model):
        report(definition.name)
        topology = trace(definition, TRACE_SIZES.dims(small))
        folder, weights = root / VARIANT, random_weights(definition)
        graphs[definition.name] = write_graph(topology, definition, weights, folder)
    names = graph_names.blocks(model.transformer.num_layers)
    graphs |= dict.fromkeys(names, graphs[graph_names.block(0)])
    autoencoder = autoencoders.find(model.vae)
    decoder = None if autoencoder is None else autoencoder.window()
    variant = Variant("bfloat16", "Random weights.", _SOURCE, graphs, decoder=decoder)
    files = {root / path for graph in graphs.values() for path in (graph.path, *graph.weights)}
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        created_by=f"sana-rt {__version__}",
        model=with_layers(model, blocks=model.transformer.num_layers, text=1),
        files=describe(root, files),
        variants={VARIANT: variant},
    )
    return save(root, manifest)


def with_layers(model: ModelSpec, *, blocks: int, text: int) -> ModelSpec:
    """``model`` with other numbers of layers and a small vocabulary."""
    edit = msgspec.structs.replace
    return edit(
        model,
        transformer=edit(model.transformer, num_layers=blocks),
        text=edit(model.text, num_layers=text, vocab_size=VOCABULARY),
    )


def _definitions(model: ModelSpec) -> tuple[GraphDefinition, ...]:
    one = with_layers(model, blocks=1, text=1)
    prompt = next(each for each in transformer_graphs(model, "bfloat16") if each.name == PROMPT)
    two = text_encoder_graph(with_layers(model, blocks=1, text=2), "bfloat16")
    return (
        text_encoder_graph(one, "bfloat16"),
        replace(two, name=TWO_LAYERS),
        prompt,  # makes keys and values for every block
        *(each for each in transformer_graphs(one, "bfloat16") if each.name != PROMPT),
        *(graph for graph in vae_graphs(one.vae, "bfloat16") if graph.name != ENCODER),
    )


def random_weights(definition: GraphDefinition) -> Weights:
    """Seeded weights of a graph, each made when it is asked for."""
    with torch.device("meta"):
        state = definition.build().state_dict()
    return Weights(
        {
            definition.prefix + name: LazyTensor(
                tuple(tensor.shape), partial(seeded_tensor, name, tuple(tensor.shape), 0)
            )
            for name, tensor in state.items()
        }
    )
