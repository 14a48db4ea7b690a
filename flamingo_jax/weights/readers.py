"""Reads files of weights as NumPy arrays by name, mapped, and without running what is in them."""

import json
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flamingo_jax.errors import UserError, need_package
from flamingo_jax.weights.views import Tensors

SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path) -> Tensors:
    """Maps a file's arrays. UserError: it is truncated, or no safetensors file at all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(_truncated(path, size, 8 + length))
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"{path} is no safetensors file: download it again") from None
        header.pop("__metadata__", None)
        end = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
        if size < end:
            raise UserError(_truncated(path, size, end))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            known = ", ".join(SAFETENSORS_DTYPES)
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}; known dtypes: {known}")
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = np.ndarray(
            entry["shape"], SAFETENSORS_DTYPES[entry["dtype"]], buffer=data, offset=start
        )
    return tensors


def _truncated(path: Path, size: int, expected: int) -> str:
    return (
        f"{path} is truncated: it has {size} bytes, its header asks for {expected}; "
        "download it again"
    )


def drop_mapped_pages(arrays: Iterable[np.ndarray]) -> None:
    """Lets the system drop what was read of mapped files: it would count as this process's memory
    until something else needs the space. What can be written to stays: it is no file's.
    """
    maps: dict[int, mmap.mmap] = {}
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and not array.flags.writeable:
            maps[id(base)] = base
    for mapped in maps.values():
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def load_torch(path: Path) -> Any:
    """Reads what `torch.save` wrote: tensors in containers, memory-mapped.

    Raises:
      UserError: truncated or unreadable, or a pickle with anything but tensors in it, which is
        refused since unpickling it could run any code; torch is not installed.
    """
    torch = need_package("torch", "torch")
    mapped = zipfile.is_zipfile(path)  # older files are one pickle and cannot be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, of files that are refused anyway
        try:
            if _is_torchscript(path):
                return torch.jit.load(path, map_location="cpu").state_dict()
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} was refused: it holds more than tensors, and unpickling that could run "
                f"any code; save only the state dict. ({_short(error)})"
            ) from None
        except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a torch file, it may be truncated; download it again. "
                f"({_short(error)})"
            ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_torchscript(path: Path) -> bool:
    """OpenAI's own CLIP files are such archives. Their loader knows tensors and modules only."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def to_numpy(tensor: Any) -> np.ndarray:
    """Shows a torch tensor's memory as an array; bfloat16, which NumPy lacks, through its bits."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def read_torch(path: Path) -> Tensors:
    """Reads a state dict, bare or wrapped as training scripts do. UserError: see `load_torch`."""
    state = load_torch(path)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {
        name: to_numpy(value)
        for name, value in (state.items() if hasattr(state, "items") else ())
        if hasattr(value, "detach")
    }
    if not tensors:
        raise UserError(f"{path} holds no state dict: give a file of named tensors")
    return tensors


def read_file(path: Path) -> Tensors:
    """Reads one file of weights, by its ending."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of weights")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


def indexed_files(index: Path) -> list[Path]:
    """Returns the files that an index names, beside it.

    Raises:
      UserError: no index, or the directory lacks some of the files.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(
            f"{index} has no weight_map, expected the file of each tensor: copy or download it "
            "again"
        )
    named = sorted(set(weight_map.values()))
    if missing := [name for name in named if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index.parent} lacks {', '.join(missing)}, named in {index.name}: copy or download "
            "the rest of the model"
        )
    return [index.parent / name for name in named]


def read_directory(folder: Path) -> Tensors:
    """Reads all weights of a folder as the Hub lays it out; safetensors where there are both.

    Raises:
      UserError: no weights, or a shard that the index names and the directory lacks.
    """
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt"):
        files = sorted(folder.glob(pattern))
        indices = sorted(folder.glob(f"{pattern}.index.json"))
        if indices:
            files = indexed_files(indices[0])
        # Some CLIPs come twice, under transformers' names and under OpenCLIP's.
        files = [f for f in files if not f.name.startswith("open_clip")] or files
        if files:
            return {n: t for file in files for n, t in read_file(file).items()}
    raise UserError(f"{folder} has no weights: expected *.safetensors or pytorch_model*.bin")


def read_weights(path: Path) -> Tensors:
    """Reads a file of weights, or all that a directory has."""
    return read_directory(path) if path.is_dir() else read_file(path)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the directory or file of the model's config")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
