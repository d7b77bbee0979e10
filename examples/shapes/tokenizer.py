"""A small bilingual tokenizer: byte-level BPE, with Gemma's special token numbers.

Every Chinese character is a word of its own, so that merges cannot tie a colour to a shape.
"""

from __future__ import annotations

from pathlib import Path

import click
from examples.shapes import clips
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SEED = 0
CAPTIONS = 4000
VOCABULARY = 512
MAX_TOKENS = 48  # what the transformer sees; the longest caption has fewer
PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"  # 0, 1, 2


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(output: Path) -> None:
    """Train the tokenizer on captions and write the folder that transformers loads."""
    tokenizer = train()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        padding_side="right",
        model_max_length=MAX_TOKENS,
    ).save_pretrained(output)


def train() -> Tokenizer:
    """A tokenizer of the captions; it covers any text, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    captions = (clips.caption(SEED, index).text for index in range(CAPTIONS))
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


if __name__ == "__main__":
    main()
