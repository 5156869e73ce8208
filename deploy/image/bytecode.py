"""Python source as byte code that takes no more room than it must."""

import importlib.util
import marshal
from pathlib import Path
from types import CodeType

__all__ = ["compiled"]

# Objects/locations.md of CPython 3.11 and later: an entry of the table of lines is an octet with its kind and how many
# instructions it is for, 8 at most, and what that kind needs: here how many lines it is after the one before.
_NO_COLUMNS = 13
_MOST = 8


def compiled(source: Path, name: str, *, lines: bool) -> bytes:
    """Return the content of a .pyc file for a module, without docstrings and assertions.

    ``name`` is what a traceback calls the file. With ``lines`` it has the line of each instruction, else that of the
    function: 0.3 MB less for the standard library. What Python would compare with the source is left out.
    """
    text = source.read_bytes()
    code = compile(text, name, "exec", dont_inherit=True, optimize=2)
    unchecked = (1).to_bytes(4, "little")  # PEP 552: by hash, and not to be checked
    header = importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(text)
    return header + marshal.dumps(code if lines else _without_lines(code))


def _without_lines(code: CodeType) -> CodeType:
    left = len(code.co_code) // 2
    table = bytearray()
    while left > 0:
        table += bytes([0x80 | _NO_COLUMNS << 3 | min(left, _MOST) - 1, 0])
        left -= _MOST
    constants = (_without_lines(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_linetable=bytes(table), co_consts=tuple(constants))
