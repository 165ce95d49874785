"""What a failed load means: whether another try may help, and if not, which file is at fault and
what to do about it.

mlx-lm, transformers and MLX raise anything, and their words often lack the file's name. So after a
failure the files that they read are looked at once more.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from worker.engine.thread import Unloadable

_TRANSIENT_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ETXTBSY,
    }
)
"""What the machine is short of, or a disk that does not answer: it may be over next time."""
_FILE_FAULT = re.compile(r"\[load|\[read|\[json|safetensors|bad_cast")
"""MLX has one exception for everything; these are its words about a bad file."""
_TRANSIENT = re.compile(
    r"alloc|memory|resource|temporarily|too many open files|can't start new thread|metal|"
    r"command buffer|device|stream|input/output",
    re.IGNORECASE,
)
"""And words of MLX and of the system about what may go well next time."""
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
)
"""JSON objects that mlx-lm and transformers read where they are there."""
_TEXTS = ("merges.txt", "vocab.txt", "chat_template.jinja")
_OTHERS = ("tokenizer.model", "tiktoken.model")
_PATTERNS = ("*.tiktoken", "additional_chat_templates/*.jinja", "model*.safetensors")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")
_LFS = b"version https://git-lfs"
_JSON_MAX = 200 * 2**20
_WORDS = 400
"""Characters of others' words in a reason."""
_BESIDE = 200
"""Of them beside words of our own."""


@contextlib.contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Turn what is raised into Unloadable, unless a new process may have more luck: out of memory
    and I/O errors pass through, and end the process."""
    try:
        yield
    except (Unloadable, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A tokenizer that is written in Rust panics with an exception that is no Exception.
        fault = file_at_fault(folder)
        if isinstance(fault, OSError) or _may_pass(error, fault):
            raise
        raise Unloadable(_reason(error, fault, folder)) from None


def _may_pass(error: BaseException, fault: str | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT_ERRNO
    if isinstance(error, RuntimeError):
        words = str(error)
        if _FILE_FAULT.search(words):
            # It could not open what can be opened now: descriptors were short.
            return "Failed to open" in words and fault is None
        return _TRANSIENT.search(words) is not None
    return False


def file_at_fault(folder: Path) -> str | OSError | None:
    """The first file in `folder` that nobody could load, with the reason; an OSError that may pass;
    None when all are fine as far as one can see. Blocks on the disk."""
    try:
        paths = [folder / name for name in (*_SETTINGS, *_TEXTS, *_OTHERS)]
        paths += sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
        for path in paths:
            if os.path.lexists(path) and (what := _fault(path)):
                return f"{path} {what}"
    except OSError as error:
        return error if error.errno in _TRANSIENT_ERRNO else _unreadable(error)
    return None


def _fault(path: Path) -> str | None:
    """Raises OSError."""
    if path.suffix == ".jinja" and path.is_dir():
        return None  # which transformers passes over
    with open(path, "rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            return "is a Git LFS pointer without the data; run `git lfs pull`"
        if path.suffix == ".safetensors":
            size = os.fstat(file.fileno()).st_size
            if 8 + int.from_bytes(start[:8], "little") > size:
                return "is cut short or not a safetensors file" if size else "is empty"
        if path.name in _SETTINGS:
            return _json_fault(path.name, start + file.read(_JSON_MAX))
        if path.name in _TEXTS and not _is_text(start + file.read(_JSON_MAX)):
            return "is not text in UTF-8"
    return None


def _json_fault(name: str, data: bytes) -> str | None:
    if data.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark; save it as UTF-8 without one"
    if not _is_text(data):
        return "is not text in UTF-8"
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        if name == "generation_config.json":
            return None  # which mlx-lm passes over
        return f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        return "is not JSON"
    return None if isinstance(value, dict) else "does not hold a JSON object"


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(error: OSError) -> str:
    denied = error.errno in (errno.EACCES, errno.EPERM)
    why = "permission denied" if denied else (error.strerror or str(error)).lower()
    advice = f"; let the user that runs Bulkhead (id {os.geteuid()}) read it" if denied else ""
    if error.filename is None:
        return f"a file cannot be read: {why}{advice}"
    return f"{os.fspath(error.filename)!s} cannot be read: {why}{advice}"


def _reason(error: BaseException, fault: str | OSError | None, folder: Path) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.EEXIST:
        return _unreadable(error)
    words = _words(error)
    if isinstance(fault, str) and not _names_another(words, fault):
        return f"{fault} ({words[:_BESIDE]})"
    return _advised(error, words, folder)


def _names_another(words: str, fault: str) -> bool:
    """Whether the error speaks of weights or of the architecture, which no settings file explains
    that is merely odd."""
    return "parameters" in words or ("Model type" in words and "config.json" not in fault)


def _advised(error: BaseException, words: str, folder: Path) -> str:
    if match := re.search(r"Model type (\S+) not supported", str(error)):
        missing = getattr(error.__cause__, "name", None)
        if missing and missing.rpartition(".")[2] != match[1]:
            return f"its model type {match[1]!r} needs the Python package {missing!r} ({words})"
        return (
            f"Model type {match[1]} not supported: mlx-lm {_version('mlx-lm')} does not know it. "
            "A newer one may: upgrade mlx-lm, and restart Bulkhead"
        )
    if "custom module" in str(error) or "trust_remote_code" in str(error):
        return f"it needs code from its own folder, which Bulkhead does not run ({words})"
    if "bad_cast" in str(error):
        return f"a file's name in {folder} is not UTF-8, and MLX opens no other; rename it"
    if not any((folder / name).is_file() for name in _TOKENIZERS) and "tokenizer" in words.lower():
        return f"there is no tokenizer in {folder} (tokenizer.json and its like): {words}"
    if "parameter" in words and isinstance(error, ValueError):
        return f"the weights in {folder} do not fit its config.json ({words[:_BESIDE]})"
    if isinstance(error, KeyError) and error.args == ("model_type",):
        return f"{folder / 'config.json'} names no model_type, so it is no language model"
    if isinstance(error, LookupError | TypeError | AttributeError):
        return f"{_read_file(error, folder)} holds what cannot be used ({words})"
    return words


def _read_file(error: BaseException, folder: Path) -> Path:
    """The file whose contents were being used when they proved odd."""
    modules = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_tokenizer = any("token" in os.path.basename(module) for module in modules)
    return folder / ("tokenizer.json" if is_tokenizer else "config.json")


def _words(error: BaseException) -> str:
    """Others' words on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_WORDS]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(of an unknown version)"
