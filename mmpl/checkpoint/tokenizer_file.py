"""A model's tokenizer from whatever file holds it, as the text of a tokenizer.json. No torch.

A tokenizer.json itself; a SentencePiece model (spiece.model); or a text encoder's file as ComfyUI
writes it, with the SentencePiece model among its tensors.
"""

from __future__ import annotations

from pathlib import Path

from mmpl.checkpoint import files
from mmpl.checkpoint.names import EMBEDDED_TOKENIZER
from mmpl.checkpoint.recognise import SAFETENSORS_SUFFIXES
from mmpl.checkpoint.sentencepiece import tokenizer_json_of

MODEL_SUFFIX = ".model"  # of SentencePiece
MAX_TOKENIZER_BYTES = 64 * 2**20


def require_tokenizer(path: Path) -> None:
    """Raises CheckpointError for a file that is visibly no whole tokenizer."""
    if path.suffix == MODEL_SUFFIX:
        files.require_file(path)
    elif path.suffix in SAFETENSORS_SUFFIXES:
        files.require_bytes(path, EMBEDDED_TOKENIZER, MAX_TOKENIZER_BYTES)
    else:
        files.require_whole_json(path, MAX_TOKENIZER_BYTES)


def read_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json. Raises CheckpointError."""
    require_tokenizer(path)
    if path.suffix == MODEL_SUFFIX:
        return tokenizer_json_of(files.read_bytes(path, MAX_TOKENIZER_BYTES), where=str(path))
    if path.suffix in SAFETENSORS_SUFFIXES:
        return tokenizer_json_of(files.tensor_bytes(path, EMBEDDED_TOKENIZER), where=str(path))
    return files.read_text(path, MAX_TOKENIZER_BYTES)
