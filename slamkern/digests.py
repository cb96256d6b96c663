"""SHA-256 of tensors: over data type, shape and raw bytes, so that no changed, moved or reordered value goes unseen.

And of texts, each with its length, so that what moves from one to the next does not go unseen either.

What is hashed are the values in memory, whatever file they came from: a GB takes 0.6 s of one core with SHA
instructions (an AMD EPYC). Who knows the files keeps the hash (``slamkern.pipeline.base_weights``).
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

THREADS = 4  # hashing lets go of the interpreter; beyond these, memory is the limit


def tensor_digest(tensor: Tensor) -> str:
    """64 hexadecimal digits; the same on every device and for every memory layout."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor; one that has several names (tied weights) is read once."""
    if sharded := {name: part for name, part in tensors.items() if hasattr(part, "full_tensor")}:
        # Gathered one after another: every process of the job does the same.
        rest = {name: tensor for name, tensor in tensors.items() if name not in sharded}
        return {name: tensor_digest(part.full_tensor()) for name, part in sharded.items()} | tensor_digests(rest)
    places = {name: _place(tensor) for name, tensor in tensors.items()}
    distinct = {place: tensors[name] for name, place in places.items()}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        digests = dict(zip(distinct, pool.map(tensor_digest, distinct.values()), strict=True))
    return {name: digests[place] for name, place in places.items()}


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """One digest of all tensors and their names, in the order of the names."""
    return combined_digest(tensor_digests(tensors))


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest of those of several named tensors."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """One digest of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(f"{len(raw)} ".encode() + raw)
    return digest.hexdigest()


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
