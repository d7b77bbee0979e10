"""The manifest's reader and writer, beyond the corpus."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sana_rt import manifest as manifests
from sana_rt.errors import (
    ManifestDuplicateError,
    ManifestError,
    ManifestLimitError,
    ManifestPathError,
    ManifestReferenceError,
    ManifestSyntaxError,
    ManifestValueError,
    ManifestVersionError,
)
from sana_rt.manifest import (
    BuiltFrom,
    Calibration,
    DecodeWindow,
    DimRange,
    File,
    Form,
    Graph,
    Lora,
    Manifest,
    Merged,
    Plan,
    Quantization,
    Source,
    Variant,
    Verification,
)
from sana_rt.model_spec import PRESETS
from sana_rt.tensors import DTYPE_BITS, MAX_DIM, TensorSpec

HASH = "0" * 64
MINIMAL = (Path(__file__).parents[1] / "data/manifests/valid/minimal.json").read_bytes()

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
tensor_names = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True)
dim_names = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, manifests.MAX_INTEGER)
paths = st.from_regex(
    r"[a-z0-9_]([a-z0-9._+-]{0,20}[a-z0-9_+-])?(/[a-z0-9]{1,3}){0,3}", fullmatch=True
)
tensors = st.builds(
    TensorSpec,
    tensor_names,
    st.sampled_from(sorted(DTYPE_BITS)),
    st.lists(st.integers(0, MAX_DIM) | dim_names, max_size=8).map(tuple),
)
recipe_names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
scales = st.floats(allow_nan=False, allow_infinity=False)
loras = st.lists(st.builds(Lora, texts, hashes, scales), min_size=1, max_size=3).map(tuple)
sources = st.builds(Source, texts, texts, hashes, st.none() | st.builds(Merged, hashes, loras))
quantizations = st.none() | st.builds(
    Quantization,
    recipe_names,
    hashes,
    st.sampled_from(["device", "emulation"]),
    st.none() | st.builds(Calibration, recipe_names, hashes, hashes, hashes, st.integers(1, 1000)),
)
signatures = st.lists(tensors, max_size=3, unique_by=lambda tensor: tensor.name).map(tuple)
verifications = st.builds(
    Verification,
    st.floats(0, allow_infinity=False),
    st.floats(0, exclude_min=True, allow_infinity=False),
    texts,
    st.lists(st.dictionaries(dim_names, counts, max_size=2), max_size=2).map(tuple),
)


def _profile(inputs: tuple[TensorSpec, ...], ends: list[int]) -> dict[str, DimRange]:
    named = {dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str)}
    return dict.fromkeys(named, DimRange(*sorted(ends)))


@st.composite
def _plans(draw: st.DrawFn, path: str, graph: Graph) -> Plan:
    return Plan(
        path=path,
        log=path,
        flavour=draw(st.sampled_from(["rtx", "trt"])),
        flavour_version=draw(texts),
        compute_capability=draw(texts),
        profile=_profile(graph.inputs, draw(st.lists(counts, min_size=3, max_size=3))),
        built_from=BuiltFrom(
            draw(hashes), tuple(draw(st.lists(hashes, max_size=2))), draw(quantizations)
        ),
        options=draw(st.dictionaries(texts, texts, max_size=2)),
        inputs=graph.inputs,
        outputs=graph.outputs,
        activation_bytes=draw(counts),
        weight_bytes=draw(counts),
        user_allocation=draw(st.booleans()),
    )


@st.composite
def _variants(draw: st.DrawFn, listed: list[str]) -> Variant:
    graphs = {
        name: Graph(
            path=draw(st.sampled_from(listed)),
            weights=tuple(draw(st.lists(st.sampled_from(listed), max_size=2))),
            opset=draw(st.integers(1, 30)),
            inputs=draw(signatures),
            outputs=draw(signatures),
            verification=draw(st.none() | verifications),
        )
        for name in draw(st.lists(names, max_size=2, unique=True))
    }
    plans = {
        target: {
            name: draw(_plans(draw(st.sampled_from(listed)), graph))
            for name, graph in graphs.items()
        }
        for target in draw(st.lists(names, max_size=1))
    }
    return Variant(
        dtype=draw(st.sampled_from(sorted(DTYPE_BITS))),
        description=draw(texts),
        source=draw(sources),
        graphs=graphs,
        plans=plans,
        quantization=draw(quantizations),
    )


@st.composite
def _manifests(draw: st.DrawFn) -> Manifest:
    listed = draw(st.lists(paths, min_size=1, max_size=4, unique=True))
    return Manifest(
        format=manifests.FORMAT,
        format_version=manifests.FORMAT_VERSION,
        created_by=draw(texts),
        model=draw(st.sampled_from(list(PRESETS.values()))),
        files=tuple(
            File(path, draw(st.integers(0, manifests.MAX_FILE_BYTES)), draw(hashes))
            for path in listed
        ),
        variants={
            name: draw(_variants(listed))
            for name in draw(st.lists(names, min_size=1, max_size=2, unique=True))
        },
        tokenizer=draw(st.none() | st.sampled_from(listed)),
    )


def _minimal(**changes: object) -> Manifest:
    return msgspec.structs.replace(manifests.decode(MINIMAL), **changes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_manifests())
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert manifests.decode(manifests.encode(manifest)) == manifest


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(MINIMAL) - 1), st.integers(0, 60), st.binary(max_size=12))
def test_damage_is_refused_with_a_manifest_error(at: int, removed: int, inserted: bytes) -> None:
    damaged = MINIMAL[:at] + inserted + MINIMAL[at + removed :]
    try:
        read = manifests.decode(damaged)
    except ManifestError:
        return
    assert manifests.decode(manifests.encode(read)) == read  # the damage was harmless


@given(st.text(max_size=40) | st.from_regex(r"[A-Za-z0-9._+/\\:-]{1,40}", fullmatch=True))
def test_an_accepted_path_stays_inside_on_every_system(path: str) -> None:
    try:
        manifests.check_path(path)
    except ManifestPathError:
        return
    for flavour in (PurePosixPath, PureWindowsPath):
        parts = flavour(path).parts
        assert "/".join(parts) == path
        assert not flavour(path).is_absolute()
        assert not flavour(path).drive
        assert ".." not in parts
    assert not any(part.endswith(".") for part in path.split("/"))


def test_a_manifest_above_the_limit_is_not_parsed() -> None:
    with pytest.raises(ManifestLimitError, match=f"{manifests.MAX_MANIFEST_BYTES + 1:,} bytes"):
        manifests.decode(b"[" * (manifests.MAX_MANIFEST_BYTES + 1))


def _keys_twice() -> bytes:
    pairs = (b'"k%d": 1' % (index // 2) for index in range(400_000))
    return b"{" + b", ".join(pairs) + b"}"


def _key_of_a_megabyte() -> bytes:
    return json.dumps({**json.loads(MINIMAL), "x" * 1_000_000: 1}).encode()


def _graphs_of_which_the_last_is_wrong() -> bytes:
    raw = json.loads(MINIMAL)
    graphs = raw["variants"]["fp32"]["graphs"]
    graph = {**graphs["timestep"], "weights": []}
    graphs |= {f"g{index}": graph for index in range(10_000)}
    graphs["last"] = {**graph, "path": "absent.onnx"}
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    "data", [_keys_twice, _key_of_a_megabyte, _graphs_of_which_the_last_is_wrong]
)
def test_refusing_a_large_manifest_takes_time_in_proportion(data: Callable[[], bytes]) -> None:
    large = data()
    started = time.process_time()
    with pytest.raises(ManifestError) as caught:
        manifests.decode(large)
    assert time.process_time() - started < 20, "quadratic in its size it would be hours"
    assert len(str(caught.value)) < 2000


def test_a_file_is_found_in_a_manifest_of_many() -> None:
    files = tuple(File(f"f{index}", 0, HASH) for index in range(60_000))
    manifest = _minimal(files=(*_minimal().files, *files))
    started = time.process_time()
    assert all(manifest.file(file.path) is file for file in files)
    assert time.process_time() - started < 10


def test_too_many_files() -> None:
    files = tuple(File(f"f{index}", 0, HASH) for index in range(manifests.MAX_FILES + 1))
    with pytest.raises(ManifestLimitError, match="65,537 files"):
        manifests.check(_minimal(files=files))


def test_depth_is_counted_from_the_root() -> None:
    allowed = b'{"a":' * (manifests.MAX_DEPTH - 1) + b"[]" + b"}" * (manifests.MAX_DEPTH - 1)
    with pytest.raises(ManifestError, match="format is None"):
        manifests.decode(allowed)
    with pytest.raises(ManifestLimitError):
        manifests.decode(allowed.replace(b"[]", b"[[]]"))


def test_integers_at_the_limit_are_exact() -> None:
    raw = json.loads(MINIMAL)
    raw["model"]["sampling"] = {"motion_score": -manifests.MAX_INTEGER}
    read = manifests.decode(json.dumps(raw).encode())
    assert read.model.sampling.motion_score == -manifests.MAX_INTEGER


def test_a_manifest_nobody_could_read_is_not_written() -> None:
    graph = manifests.decode(MINIMAL).variants["fp32"].graphs["timestep"]
    nan = Verification(float("nan"), 1e-5, "torch", ())
    broken = msgspec.structs.replace(graph, verification=nan)
    variants = {"fp32": Variant("float32", "", Source("", "", HASH), {"timestep": broken})}
    with pytest.raises(ManifestSyntaxError, match="max_error"):
        manifests.encode(_minimal(variants=variants))


def test_the_same_path_object_twice_is_found() -> None:
    file = File("fp32/timestep.onnx", 321, HASH)
    with pytest.raises(ManifestDuplicateError):
        manifests.check(_minimal(files=(file, file)))


def test_text_of_the_manifest_does_not_choose_the_error() -> None:
    raw = json.loads(MINIMAL)
    raw["model"]["vae"]["kind"] = "Object contains unknown field, got `x`"
    with pytest.raises(ManifestValueError):
        manifests.decode(json.dumps(raw).encode())


def test_lookups_name_what_is_there() -> None:
    manifest = manifests.decode(MINIMAL)
    assert manifest.file("fp32/timestep.bin").bytes == 65536
    assert manifest.variant("fp32") is manifest.variants["fp32"]
    with pytest.raises(ManifestReferenceError, match="fp16"):
        manifest.variant("fp16")
    with pytest.raises(ManifestReferenceError, match="fp32"):
        manifest.variant("fp16")
    with pytest.raises(ManifestReferenceError, match=r"rope\.onnx"):
        manifest.file("rope.onnx")


def test_variants_of_a_recipe_are_found_by_what_made_them() -> None:
    fp32 = manifests.decode(MINIMAL).variants["fp32"]

    def made(recipe: str, form: Form) -> Variant:
        return msgspec.structs.replace(fp32, quantization=Quantization(recipe, HASH, form))

    manifest = _minimal(
        variants={
            "nvfp4-max": fp32,
            "mine": made("max", "device"),
            "yours": made("max", "emulation"),
            "again": made("max", "emulation"),
            "max": made("own", "emulation"),
        }
    )
    assert manifest.of_recipe("max", "device") == ("mine",)
    assert manifest.of_recipe("max", "emulation") == ("yours", "again")
    assert manifest.of_recipe("nvfp4-max", "device") == ()


@pytest.mark.parametrize(
    ("checkpoint", "shown"),
    [
        ("owner/model@0123", "sana-rt export owner/model@0123 BUNDLE"),
        ("my checkpoint; reboot", "sana-rt export 'my checkpoint; reboot' BUNDLE"),
        ("\x1b[2J", "sana-rt export CHECKPOINT BUNDLE"),
        ("x" * 1000, "sana-rt export CHECKPOINT BUNDLE"),
        ("", "sana-rt export CHECKPOINT BUNDLE"),
        (["a list"], "sana-rt export CHECKPOINT BUNDLE"),
    ],
)
def test_a_version_1_bundle_says_how_to_make_it_again(checkpoint: object, shown: str) -> None:
    raw = {**json.loads(MINIMAL), "format_version": 1, "source": {"checkpoint": checkpoint}}
    with pytest.raises(ManifestVersionError) as caught:
        manifests.decode(json.dumps(raw).encode())
    text = str(caught.value)
    assert "format_version is 1" in text
    assert "Expected: 2" in text
    assert shown in text
    assert "\x1b" not in text


def test_a_version_1_bundle_without_a_source_is_refused_as_such() -> None:
    raw = {**json.loads(MINIMAL), "format_version": 1, "source": "tiny"}
    with pytest.raises(ManifestVersionError, match="export CHECKPOINT BUNDLE"):
        manifests.decode(json.dumps(raw).encode())


windows = st.builds(
    DecodeWindow, *[st.integers(1, 5)] * 4, lookahead=st.just(0), caches=st.integers(0, 3)
)


@given(windows, st.integers(1, 30), st.integers(0, 30))
def test_calls_of_a_decoder_are_numbered_and_leave_nothing_out(
    window: DecodeWindow, count: int, at: int
) -> None:
    calls = list(window.calls(range(count)))
    assert [index for call in calls for index in call][:count] == list(range(count))
    assert [window.call(call.start) for call in calls] == list(range(len(calls)))
    assert all(window.call(index) == window.call(call.start) for call in calls for index in call)
    assert calls[-1].start < count
    going_on = calls[min(at, len(calls) - 1)].start
    assert list(window.calls(range(going_on, count))) == calls[window.call(going_on) :]
