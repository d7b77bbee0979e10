"""What is refused as a LoRA, and the option that names one; what is merged: tests/parity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
from safetensors.torch import save_file

from sana_rt.cli.lora_option import Chosen as Given
from sana_rt.cli.lora_option import lora_option
from sana_rt.errors import CheckpointError, CheckpointFormatError, CheckpointKeysError, UsageError
from sana_rt.export import lora
from sana_rt.export.checkpoint import Checkpoint, open_checkpoint
from sana_rt.files import sha256
from sana_rt.manifest import Lora, Source

WIDTH = 112
QUERY = "transformer.transformer_blocks.0.attn1.to_q"
WEIGHTS = "adapter_model.safetensors"
Write = Callable[..., Path]


class Chosen(NamedTuple):
    path: Path
    scale: float = 1.0


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(small_checkpoint)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, name: str = "one"
    ) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, metadata)
        return path

    return write


def pair(layer: str = QUERY, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lora_A.weight": torch.ones(rank, WIDTH),
        f"{layer}.lora_B.weight": torch.ones(WIDTH, rank),
    }


def test_unknown_names_are_counted_and_some_listed(checkpoint: Checkpoint, write: Write) -> None:
    unknown = {f"text_encoder.{index}.lora_A.weight": torch.ones(2, 2) for index in range(30)}
    path = write(pair() | unknown | {"x" * 5000: torch.ones(1)})
    with pytest.raises(CheckpointKeysError) as caught:
        lora.merge(checkpoint, [Chosen(path)])
    message = str(caught.value)
    assert "31 belong to no layer of this transformer: " in message
    assert "text_encoder.0.lora_A.weight" in message
    assert "... and 21 more" in message
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{QUERY}.lora_A.weight": torch.ones(2, WIDTH)}, "1 are half of a pair"),
        (pair("transformer.transformer_blocks.9.attn1.to_q"), "2 belong to no layer"),
        (pair("transformer.transformer_blocks.0.attn1.norm_q"), "2 belong to no layer"),
        (pair("transformer.transformer_blocks.0.ff.conv_temp"), r"have other shapes.*112, 3, 1"),
        (pair("transformer.transformer_blocks.0.ff.conv_depth"), "have other shapes"),
        (pair() | pair("diffusion_model.transformer_blocks.0.attn1.to_q"), "two tensors for one"),
        (pair() | {f"{QUERY}.lora_B.weight": torch.ones(WIDTH, 3)}, "no product of two factors"),
        (pair(rank=0), "no product of two factors"),
        (pair() | {f"{QUERY}.alpha": torch.ones(2)}, "has the shape"),
        (pair() | pair("blocks.0.attn.qkv"), r"qkv.weight is changed by \(112, 112\), is several"),
        ({}, "has no tensors"),
    ],
)
def test_what_does_not_fit(
    checkpoint: Checkpoint, write: Write, tensors: dict[str, torch.Tensor], match: str
) -> None:
    with pytest.raises(CheckpointKeysError, match=match):
        lora.merge(checkpoint, [Chosen(write(tensors))])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (f"{QUERY}.lora_magnitude_vector", "DoRA"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.dora_scale", "DoRA"),
        (f"{QUERY}.hada_w1_a", "LoHa"),
        (f"{QUERY}.lokr_w1", "LoKr"),
        (f"{QUERY}.lora_mid.weight", "Tucker"),
    ],
)
def test_other_methods_are_named(
    checkpoint: Checkpoint, write: Write, name: str, method: str
) -> None:
    path = write(pair() | {name: torch.ones(WIDTH)})
    with pytest.raises(CheckpointFormatError, match=f"no plain LoRA but .*{method}"):
        lora.merge(checkpoint, [Chosen(path)])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "nested too deeply|cannot be read"),
        ('{"transformer.r": 2}', "lacks the field 'lora_alpha'"),
        ('{"transformer.lora_alpha": "6"}', "sets lora_alpha to '6'"),
        ('{"transformer.lora_alpha": Infinity}', "one.safetensors sets lora_alpha to inf"),
        (
            '{"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_q": NaN}}',
            "'to_q': nan",
        ),
        ('{"transformer.lora_alpha": 6, "transformer.init_lora_weights": "pissa"}', "'pissa'"),
        ('{"transformer.lora_alpha": 6, "transformer.init_lora_weights": "new"}', "'new'"),
        ('{"transformer.lora_alpha": 6, "transformer.layer_replication": [[0, 2]]}', "own layers"),
        ('{"transformer.lora_alpha": 6, "transformer.sparsity": 1}', "'sparsity'.*not known"),
        ('{"transformer.lora_alpha": 6, "transformer.use_dora": true}', "DoRA"),
        ('{"transformer.lora_alpha": 6, "transformer.lora_bias": true}', "biases"),
        ('{"transformer.lora_alpha": 6, "transformer.peft_type": "LOHA"}', "'LOHA'"),
        ('{"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"(a+)+b": 1}}', "alpha_patt"),
        (" " * (1 << 21), "metadata of 2,097,152 characters"),
    ],
)
def test_settings_that_cannot_be_used(
    checkpoint: Checkpoint, write: Write, settings: str, match: str
) -> None:
    path = write(pair(), {"lora_adapter_metadata": settings})
    with pytest.raises(CheckpointFormatError, match=match):
        lora.merge(checkpoint, [Chosen(path)])


def test_pefts_weights_without_its_settings(checkpoint: Checkpoint, write: Write) -> None:
    path = write(pair(), name="adapter_model")
    with pytest.raises(CheckpointFormatError, match=r"adapter_config\.json beside it"):
        lora.merge(checkpoint, [Chosen(path)])


def test_a_factor_beyond_numbers_is_refused(checkpoint: Checkpoint, write: Write) -> None:
    path = write(pair() | {f"{QUERY}.alpha": torch.tensor(1e30)})
    with pytest.raises(CheckpointFormatError, match=r"one.safetensors .*0.attn1.to_q inf times"):
        lora.merge(checkpoint, [Chosen(path, 1e300)])


def test_two_alphas_are_one_too_many(checkpoint: Checkpoint, write: Write) -> None:
    settings = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6})}
    path = write(pair() | {f"{QUERY}.alpha": torch.ones(())}, settings)
    with pytest.raises(CheckpointFormatError, match="alphas both among"):
        lora.merge(checkpoint, [Chosen(path)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_sum_that_is_not_finite_is_refused_when_it_is_read(
    checkpoint: Checkpoint, write: Write, value: float
) -> None:
    path = write(pair() | {f"{QUERY}.lora_B.weight": torch.full((WIDTH, 2), value)})
    merged = lora.merge(checkpoint, [Chosen(path, 2.0)])
    with pytest.raises(CheckpointFormatError, match="holds NaN or infinity"):
        merged.transformer.load("transformer_blocks.0.attn1.to_q.weight")


def test_nothing_is_read_before_it_is_asked_for(checkpoint: Checkpoint, write: Write) -> None:
    """Merging itself reads names and shapes; a layer is read when it is written."""
    path = write(pair())
    merged = lora.merge(checkpoint, [Chosen(path)])
    path.unlink()
    merged.transformer.load("transformer_blocks.1.attn1.to_q.weight")
    with pytest.raises((CheckpointError, OSError)):
        merged.transformer.load("transformer_blocks.0.attn1.to_q.weight")


def test_the_order_does_not_matter(checkpoint: Checkpoint, write: Write) -> None:
    torch.manual_seed(0)
    paths = [
        write({key: torch.randn(value.shape) for key, value in pair().items()}, name=name)
        for name in ("b", "a", "c")
    ]
    chosen = [Chosen(path, 0.1 * index) for index, path in enumerate(paths, 1)]
    one, other = lora.merge(checkpoint, chosen), lora.merge(checkpoint, chosen[::-1])
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(one.transformer.load(name), other.transformer.load(name))
    assert one.source == other.source
    assert one.source.base == checkpoint.source.sha256 != one.source.sha256
    with pytest.raises(UsageError, match="given twice"):
        lora.merge(checkpoint, [chosen[0], chosen[0]])


def test_a_folder_without_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="holds no LoRA"):
        lora.merge(checkpoint, [Chosen(tmp_path)])


def as_peft_saves(folder: Path, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(pair("base_model.model.transformer_blocks.0.attn1.to_q"), folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2} | settings))
    return folder


def test_files_with_a_librarys_name_go_by_their_folders(
    checkpoint: Checkpoint, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [as_peft_saves(tmp_path / name) for name in ("Style", "v1.5")]
    (tmp_path / "plain").mkdir()
    diffusers = write(pair(), name="plain/pytorch_lora_weights")
    monkeypatch.chdir(folders[1])
    given = [*folders, folders[0] / WEIGHTS, Path(), Path(WEIGHTS), diffusers]
    names = [lora.merge(checkpoint, [Chosen(path)]).source.variant_name("fp32") for path in given]
    assert names == [f"fp32-{name}" for name in ("style", "v1.5", "style", "v1.5", "v1.5", "plain")]


def test_the_hash_covers_the_settings(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = as_peft_saves(tmp_path / "style")
    before = lora.merge(checkpoint, [Chosen(folder)])
    text = "".join(
        sorted(f"{sha256(folder / name)}  {name}\n" for name in (WEIGHTS, "adapter_config.json"))
    )
    assert before.loras == (Lora("style", hashlib.sha256(text.encode()).hexdigest(), 1.0),)
    as_peft_saves(folder, use_rslora=True)
    after = lora.merge(checkpoint, [Chosen(folder)])
    assert after.source.sha256 != before.source.sha256
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(after.transformer.load(name), before.transformer.load(name))


def source(*loras: Lora) -> Source:
    return Source("base", "diffusers", "0" * 64).with_loras(loras)


@pytest.mark.parametrize(
    ("loras", "name"),
    [
        ([], "fp32"),
        ([Lora("Style.safetensors", "1" * 64, 0.8)], "fp32-style-0.8"),
        ([Lora("My style (v2).safetensors", "1" * 64, 1)], "fp32-my-style-v2-"),
        ([Lora("x.safetensors", "1" * 64, -1.5)], "fp32-x--1.5"),
        ([Lora("v1.5", "1" * 64, 1)], "fp32-v1.5"),
        ([Lora("b", "1" * 64, 1), Lora("a", "2" * 64, 1)], "fp32-a-b"),
    ],
)
def test_the_name_of_a_variant(loras: list[Lora], name: str) -> None:
    assert source(*loras).variant_name("fp32") == name


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    names = {
        source(Lora(f"{'long' * 30}{index}", "1" * 64, index)).variant_name("fp32")
        for index in range(2, 5)
    }
    assert len(names) == 3
    assert all(len(name) <= 40 for name in names)
    further = source(Lora(f"{'long' * 30}2", "2" * 64, 2)).variant_name("fp32")
    assert further in names, "trained further, it replaces its variant"


def test_what_replaces_what() -> None:
    before = source(Lora("style", "1" * 64, 0.8))
    assert source(Lora("style", "2" * 64, 0.8)).may_replace(before)
    assert not source(Lora("style", "1" * 64, 0.7)).may_replace(before)
    assert not source(Lora("other", "1" * 64, 0.8)).may_replace(before)
    assert not source().may_replace(before)


def given(*words: str) -> tuple[Given, ...]:
    found: list[tuple[Given, ...]] = []
    command = click.Command("export", params=[], callback=lambda loras: found.append(loras))  # noqa: PLW0108
    lora_option(command)
    command.main(list(words), standalone_mode=False)
    return found[0]


def test_the_option(tmp_path: Path) -> None:
    for name in ("one", "two=0.5"):
        (tmp_path / name).touch()
    one, two = tmp_path / "one", tmp_path / "two=0.5"
    words = ["--lora", f"{one}=-0.8", "--lora", str(one), "--lora", str(two), "--lora", f"{two}=2"]
    assert given(*words) == (Given(one, -0.8), Given(one, 1), Given(two, 1), Given(two, 2))
    for text, match in (
        (f"{one}=much", "no number"),
        (f"{one}=nan", "no number"),
        ("no", "no file"),
    ):
        with pytest.raises(click.BadParameter, match=match):
            given("--lora", text)
