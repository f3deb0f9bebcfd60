"""A model that does not fit is refused with what would fit."""

import json
from pathlib import Path

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.memory_budget import DeviceMemory, check_device_memory, check_host_memory
from tetriserve_backend.executor.stored_weights import NUMBERS, PartWeights, read_weights

GIB = 1 << 30
SETTINGS = ModelSettings()


def write_weights(file: Path, dtype: str, **tensors: tuple[int, ...]) -> None:
    """The header of weights of any size; the numbers themselves are never read."""
    header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.fixture
def sd3(tmp_path: Path) -> Path:
    """4 GiB of transformer in two files, 8 GiB of T5 and 2 GiB of VAE, all stored in bfloat16."""
    half_gib = (1024, 256, 1024)
    for number in (1, 2):
        tensors = {f"block{n}": half_gib for n in range(4)}
        write_weights(tmp_path / "transformer" / f"part{number}.safetensors", "BF16", **tensors)
    names = {"a": "part1.safetensors", "b": "part2.safetensors"}
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    write_weights(tmp_path / "text_encoder_3" / "model.safetensors", "BF16", all=(8, 512, 1024, 1024))
    write_weights(tmp_path / "text_encoder_3" / "model.fp16.safetensors", "F16", all=(8, 512, 1024, 1024))
    write_weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", "BF16", all=(2, 512, 1024, 1024))
    (tmp_path / "scheduler").mkdir()
    return tmp_path


def test_weights_are_read_from_headers_and_variants_do_not_count(sd3: Path) -> None:
    sizes = {part.name: part.loaded_bytes("bfloat16") / GIB for part in read_weights(sd3)}
    assert sizes == {"transformer": 4.0, "text_encoder_3": 8.0, "vae": 2.0}


def test_part_is_mapped_only_as_it_is_stored() -> None:
    mixed = PartWeights("vae", {"F32": 10, "BF16": 10}, other_bytes=5)
    assert not mixed.is_mapped_as("bfloat16")
    assert mixed.loaded_bytes("float32") == 85
    assert PartWeights("vae", {"F32": 10}, 5).is_mapped_as("float32")


def test_model_that_fits_is_accepted(sd3: Path) -> None:
    check_device_memory(sd3, SETTINGS, "bfloat16", DeviceMemory("cuda:0", 15 * GIB))
    check_device_memory(sd3, ModelSettings(load_t5=False), "bfloat16", DeviceMemory("cuda:0", 7 * GIB))


def test_ranks_on_the_cpu_share_what_is_mapped_and_copy_all_else(sd3: Path) -> None:
    check_host_memory(sd3, SETTINGS, "bfloat16", 8, 15 * GIB)
    with pytest.raises(ConfigurationError, match=r"224\.5 GiB needed in float32"):
        check_host_memory(sd3, SETTINGS, "float32", 8, 15 * GIB)


def test_message_names_what_would_fit(sd3: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_device_memory(sd3, SETTINGS, "float32", DeviceMemory("cuda:0", 16 * GIB))
    assert str(raised.value).endswith(
        "29.0 GiB needed in float32 (text_encoder_3 16.0 GiB, transformer 8.0 GiB, vae 4.0 GiB), "
        "16.0 GiB free on cuda:0; what would fit: model.dtype: bfloat16 (15.0 GiB) or model.load_t5: false (13.0 GiB) "
        "or model.text_encoder_ranks: 0 (13.0 GiB)"
    )


def test_several_settings_are_named_where_one_is_not_enough(sd3: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_device_memory(sd3, SETTINGS, "float32", DeviceMemory("cuda:0", 10 * GIB))
    assert str(raised.value).endswith(
        "what would fit: model.dtype: bfloat16 with model.load_t5: false (7.0 GiB) "
        "or model.dtype: bfloat16 with model.text_encoder_ranks: 0 (7.0 GiB)"
    )


def test_rank_without_text_encoders_needs_less(sd3: Path) -> None:
    check_device_memory(sd3, SETTINGS, "bfloat16", DeviceMemory("cuda:1", 7 * GIB, keeps_text_encoders=False))


def test_message_says_so_where_nothing_would_fit(sd3: Path) -> None:
    with pytest.raises(ConfigurationError, match="what would fit: more free memory or a smaller model"):
        check_device_memory(sd3, SETTINGS, "bfloat16", DeviceMemory("cuda:0", GIB))


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0not json", (1 << 62).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0[]"]
)
def test_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"vae/model\.safetensors: expected weights in safetensors format"):
        read_weights(tmp_path)


def test_machine_is_asked_how_much_is_free(sd3: Path) -> None:
    write_weights(sd3 / "huge" / "model.safetensors", "BF16", all=(1 << 20, 1 << 30))
    with pytest.raises(ConfigurationError, match="free on this machine"):
        check_host_memory(sd3, SETTINGS, "bfloat16", 1)


def test_weights_that_are_made_are_nobodys_copy(sd3: Path) -> None:
    """14 GiB read and shared by two ranks; made, each rank has its own."""
    check_host_memory(sd3, SETTINGS, "bfloat16", 2, free_bytes=16 * GIB)
    made = ModelSettings(random_weights=True)
    with pytest.raises(ConfigurationError, match=r"28\.1 GiB needed in bfloat16"):
        check_host_memory(sd3, made, "bfloat16", 2, free_bytes=16 * GIB)
    check_host_memory(sd3, made, "bfloat16", 1, free_bytes=16 * GIB)


def test_a_directory_without_weights_tells_how_many_there_would_be(tmp_path: Path) -> None:
    (tmp_path / NUMBERS).write_text(json.dumps({"transformer": 4 * GIB, "text_encoder_3": GIB}))
    made = ModelSettings(random_weights=True)
    device = DeviceMemory("cuda:0", 10 * GIB)
    with pytest.raises(ConfigurationError, match=r"transformer 8\.0 GiB.*would fit: model\.load_t5: false"):
        check_device_memory(tmp_path, made, "bfloat16", device)
    (tmp_path / NUMBERS).write_text("[1]")
    with pytest.raises(ConfigurationError, match=f"{NUMBERS}: expected the numbers of weights"):
        check_device_memory(tmp_path, made, "bfloat16", device)
