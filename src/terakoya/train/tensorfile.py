"""A safetensors file as a stream: a head of JSON, then the bytes of one tensor after another, none copied twice.

Format: https://github.com/huggingface/safetensors#format (eight bytes of length, JSON, then the tensors without gaps).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

import torch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in the order of the file: the widest numbers first, so that every tensor begins aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def layout(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the head of the file and where in the file each tensor's bytes lie, (start, end) by name."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    spans: dict[str, tuple[int, int]] = {}
    end = 0
    for name in order(tensors):
        tensor = tensors[name]
        if name == "__metadata__" or tensor.dtype not in NAMES or tensor.device.type == "meta":
            raise ValueError(f"tensor {name!r} ({tensor.dtype}, {tensor.device}) cannot be stored")
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        spans[name] = (start, end)
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: (len(head) + start, len(head) + end) for name, (start, end) in spans.items()}


def raw(tensor: torch.Tensor) -> memoryview:
    """View a tensor's bytes; shares memory with it where it is dense and on the CPU, else with a copy."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size in bytes of a tensor; `dtype` is a key of DTYPES."""
    return prod(shape) * DTYPES[dtype].itemsize
