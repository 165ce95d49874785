"""Where the settings' files are, and reading them: the state dir, the TOML file, the API keys."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from supervisor.config.rules import ConfigError
from supervisor.wire.text import reason

MAX_BYTES = 1_000_000
"""Of a configuration, or of a file of keys."""
_KEY_LINE = re.compile(rb"(?P<key>[!-~]+)(?:\s+#\s*(?P<name>.*))?")


def resolve_state_dir(flag: str | Path | None, environ: Mapping[str, str]) -> Path:
    """The absolute state dir: `--state-dir`, else $BULKHEAD_HOME, else ~/.bulkhead.

    Nothing is created or looked at. Raises ConfigError where the user has no home directory, or a
    relative path no working directory.
    """
    chosen = expand(flag or environ.get("BULKHEAD_HOME") or "~/.bulkhead", environ)
    if str(chosen).startswith("~"):
        raise ConfigError(
            f"state directory: {chosen}: there is no such home directory; choose a place with "
            "--state-dir or BULKHEAD_HOME"
        )
    try:
        return chosen.absolute()
    except OSError as error:
        raise ConfigError(
            f"state directory: {chosen}: the working directory cannot be found "
            f"({reason(error)}); give an absolute path"
        ) from None


def resolve_config_path(
    flag: str | Path | None, environ: Mapping[str, str], state_dir: Path
) -> Path | None:
    """The file to load: `--config`, else $BULKHEAD_CONFIG, else STATE/bulkhead.toml, else None.

    Raises ConfigError when the flag or the variable names something that is not there.
    """
    for origin, name in (("--config", flag), ("BULKHEAD_CONFIG", environ.get("BULKHEAD_CONFIG"))):
        if name:
            path = expand(name, environ)
            # Anything but a folder will do: a shell's <(...) is a pipe.
            if not os.path.exists(path) or os.path.isdir(path):
                raise ConfigError(f"{origin}: no such file: {path}")
            return path
    path = state_dir / "bulkhead.toml"
    return path if os.path.exists(path) else None


def read_api_keys(path: str | Path) -> dict[str, str]:
    """The API keys in the file at `path`, with their names: one a line, `KEY` or `KEY # NAME`.

    Blank lines and lines that begin with `#` are skipped; a key without a name is called after its
    line, "line-3".

    Raises ConfigError, which never holds a key, when it is no file or cannot be read, when anyone
    but its owner has access to it, when it holds no key, or a key that no HTTP header can carry.
    """
    path = expand(path, os.environ)
    where = f"server.api_keys_file: {path}"
    try:
        with open(path, "rb", opener=_not_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            # Checked before reading, on the open file: the name may point elsewhere by then.
            if not stat.S_ISREG(mode):  # such as a pipe: it could not be read a second time
                raise ConfigError(f"{where}: that is not a file")
            if mode & 0o077:
                raise ConfigError(f"{where}: others have access to it; run `chmod 600 {path}`")
            lines = _bounded(file).removeprefix(b"\xef\xbb\xbf").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {_reason(error)}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        match = _KEY_LINE.fullmatch(line)
        if match is None:
            raise ConfigError(
                f"{where}: line {number}: a key is ASCII without spaces; a name may follow as "
                "`KEY # NAME`"
            )
        name = (match["name"] or b"").decode("utf-8", "backslashreplace")
        keys.setdefault(match["key"].decode("ascii"), name or f"line-{number}")
    if not keys:
        raise ConfigError(f"{where}: holds no key; write one a line")
    return keys


def _not_waiting(path: str, flags: int) -> int:
    """An opener: a FIFO would wait for a writer, and the gateway with it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_toml(path: Path) -> dict[str, object]:
    """The tables of the file at `path`. Raises ConfigError with the file's name and the line."""
    try:
        with open(path, "rb") as file:
            text = _bounded(file).decode("utf-8")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"at line {text.count(chr(10)) + 1}, the end of the file"
        problem = str(error).replace("at end of document", end)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"not UTF-8 (at line {line})"
    except RecursionError:
        problem = "nested too deeply"
    except (OSError, ValueError) as error:
        problem = _reason(error)
    raise ConfigError(f"{path}: {problem}")


def _bounded(file: BinaryIO) -> bytes:
    """What the file holds, which may be a device or a pipe without an end. Raises ValueError."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 10**6} MB")
    return data


def _reason(error: Exception) -> str:
    return f"cannot be read: {reason(error)}"


def expand(path: str | Path, environ: Mapping[str, str]) -> Path:
    """`~` is the home folder that `environ` names."""
    text = os.fspath(path)
    if environ.get("HOME") and (text == "~" or text.startswith("~/")):
        return Path(environ["HOME"] + text[1:])
    return Path(os.path.expanduser(text))
