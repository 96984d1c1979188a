"""MATLAB files, for the readers of the sets that come as such: MAT 5 through scipy, MAT 7.3 (HDF5) through h5py.

A value read is a float or integer array, a str, a dict (a struct), or an array of such objects (a cell or an array of
structs), always in the shape that MATLAB shows.
"""

import math
import struct
import zlib

import numpy as np
from scipy.io import loadmat

INT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 5, 6, 14, 15, 16  # types of elements
CELL, STRUCT, OBJECT, CHARACTERS, SPARSE, LAST = 1, 2, 3, 4, 5, 15  # array classes; those above LAST have no shape
BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}  # of a value, by its type
SPARE = 65536  # values that a damaged file may claim too many: they cost nothing
DEEPEST = 20  # cells in structs in cells ...; those of the data sets go down to 6


def read_mat(path, names) -> dict:
    """The variables `names` as far as the file has them. Raises ValueError where the file is damaged."""
    with open(path, "rb") as file:
        header = file.read(520)
    if header[512:] == b"\x89HDF\r\n\x1a\n":
        try:
            import h5py
        except ImportError as error:
            raise ValueError(f"{path}: a MAT 7.3 file, which needs h5py; pip install h5py") from error
    try:
        if header[512:] == b"\x89HDF\r\n\x1a\n":
            with h5py.File(path, "r") as file:
                return {name: _from_hdf5(file, file[name], 0) for name in names if name in file}
        if header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise ValueError("no header of one")
        with open(path, "rb") as file:
            _check_sizes(file, names, "<" if header[126:128] == b"IM" else ">")
            file.seek(0)
            variables = loadmat(file, variable_names=names)
        return {name: _plain(variables.pop(name)) for name in names if name in variables}
    except Exception as error:  # scipy and h5py raise whatever the damaged bytes lead them to
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path}: expected a MAT file (5 or 7.3), found {reason}; download it again") from error


def texts(value) -> list[str]:
    """The strings of a cell, of a matrix of characters or of a matrix of their codes, one a row, without blanks."""
    value = np.asarray(value)
    if value.dtype.kind in "iu" and value.ndim == 2:
        value = np.array(["".join(map(chr, row)) for row in value.astype(np.uint16)])
    return [" ".join(text.replace("\0", " ").split()) for text in value.ravel() if isinstance(text, str)]


def number(value, where) -> float:
    """A scalar as float, whatever type it was saved in: arithmetic in uint8 would overflow."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size != 1:
        raise ValueError(f"{where}: expected one number, found {describe(value)}")
    return float(value.item())


def matrix(value, where, columns=None):
    """`value` if it is a real matrix, (n, columns) where `columns` is given, else ValueError."""
    is_matrix = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == 2
    if not is_matrix or columns not in (None, value.shape[1]):
        raise ValueError(
            f"{where}: expected numbers (n, {columns or 'k'}), found {describe(value)}; download the file again"
        )
    return value


def field(value, name, where):
    """Field `name` of a struct, else ValueError."""
    if not isinstance(value, dict) or name not in value:
        found = f"a struct of {' '.join(value) or 'nothing'}" if isinstance(value, dict) else describe(value)
        raise ValueError(f"{where}: expected a struct with {name}, found {found}; download the file again")
    return value[name]


def describe(value) -> str:
    """A few words on what was found in place of what was expected."""
    return f"{value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _plain(value):
    """What scipy loaded, as this module's docstring says."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:
        structs = [{name: _plain(item[name]) for name in value.dtype.names} for item in value.ravel()]
        return structs[0] if len(structs) == 1 else _objects(structs, value.shape)
    if value.dtype == object:
        return _objects([_plain(item) for item in value.ravel()], value.shape)
    return str(value.item()) if value.dtype.kind == "U" and value.size == 1 else value


def _objects(items, shape):
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array.reshape(shape)


# ---- MAT 5: where a damaged file says other than its bytes do, scipy may fill the memory or crash -------------------


class _Inflated:
    """The bytes that a compressed element of `size` bytes at the position of `file` holds, read forward."""

    def __init__(self, file, size):
        self.file, self.left, self.inflate, self.place, self.ready = file, size, zlib.decompressobj(), 0, b""

    def read(self, count):
        parts = []
        while count:
            if not self.ready:
                packed = self.inflate.unconsumed_tail or self.file.read(min(self.left, 65536))
                if not self.inflate.unconsumed_tail:
                    self.left -= len(packed)
                self.ready = self.inflate.decompress(packed, 2**20)
                if not self.ready and not packed:
                    raise ValueError("a compressed variable that ends too early")
            parts.append(self.ready[:count])
            self.ready = self.ready[count:]
            count -= len(parts[-1])
            self.place += len(parts[-1])
        return b"".join(parts)

    def skip(self, count):
        while count:
            count -= len(self.read(min(count, 2**20)))

    def tell(self):
        return self.place


class _Plain:
    """The same of an element that is not compressed."""

    def __init__(self, file, size):
        self.file, self.tell = file, file.tell

    def read(self, count):
        data = self.file.read(count)
        if len(data) < count:
            raise ValueError("a variable that ends too early")
        return data

    def skip(self, count):
        self.file.seek(count, 1)


def _check_sizes(file, names, order):
    """Raises ValueError where one of the variables `names` has other values than its shape says."""
    end, place = file.seek(0, 2), 128
    while place + 8 <= end:
        file.seek(place)
        kind, size = struct.unpack(order + "II", file.read(8))
        place += 8 + size
        if place > end:
            raise ValueError(f"a variable of {size} bytes that ends too early")
        stream = _Plain(file, size)
        if kind == COMPRESSED:
            stream = _Inflated(file, size)
            kind, size = struct.unpack(order + "II", stream.read(8))
        if kind == MATRIX:
            _check_matrix(stream, size, order, names, 0)


def _check_matrix(stream, size, order, names, depth):
    end = stream.tell() + size
    if size == 0:
        return
    if depth > DEEPEST:
        raise ValueError(f"cells nested deeper than {DEEPEST}")
    (flags,) = struct.unpack(order + "I4x", _element(stream, order, end, UINT32))
    array_class, is_complex = flags & 0xFF, flags & 0x800
    shape = ()
    if array_class <= LAST:
        packed = _element(stream, order, end, INT32)
        shape = struct.unpack(f"{order}{len(packed) // 4}i", packed)
    name = _element(stream, order, end, INT8).decode("latin-1")
    if depth == 0 and name not in names:
        return
    values = math.prod(shape)
    if array_class == SPARSE or min(shape, default=0) < 0 or values > max(SPARE, size):
        raise ValueError(f"{name or 'a cell'} of class {array_class} and shape {shape} in {size} bytes")
    if array_class in (CELL, STRUCT, OBJECT):
        if array_class == OBJECT:
            _element(stream, order, end, INT8)
        if array_class != CELL:
            (length,) = struct.unpack(order + "i", _element(stream, order, end, INT32))
            values *= len(_element(stream, order, end, INT8)) // length
        for _ in range(values):
            kind, part = struct.unpack(order + "II", stream.read(8))
            if kind != MATRIX or part > end - stream.tell():
                raise ValueError(f"a part of {name or 'a cell'} of kind {kind} and {part} bytes")
            _check_matrix(stream, part, order, names, depth + 1)
    elif array_class <= LAST:
        for _ in range(2 if is_complex else 1):
            kind, part = struct.unpack(order + "II", stream.read(8))
            if kind >> 16:  # up to four bytes lie in the tag itself
                kind, part, rest = kind & 0xFFFF, kind >> 16, 0
            else:
                rest = part + -part % 8
            fits = kind in BYTES and (array_class == CHARACTERS or part == values * BYTES[kind])
            if rest > end - stream.tell() + 7 or not fits:
                raise ValueError(f"{name or 'a cell'} of shape {shape} and type {kind} in {part} bytes")
            stream.skip(min(rest, end - stream.tell()))
    if not 0 <= end - stream.tell() < 8 and array_class <= LAST:
        raise ValueError(f"{name or 'a cell'} of another length than its {size} bytes")
    stream.skip(end - stream.tell())


def _element(stream, order, end, expected) -> bytes:
    """The next small element: flags, shape or names, of the type expected."""
    tag = stream.read(8)
    kind, size = struct.unpack(order + "II", tag)
    small = kind >> 16  # up to four bytes lie in the tag itself
    if kind & 0xFFFF not in {expected, UTF8 if expected == INT8 else expected} or small > 4:
        raise ValueError(f"a header of type {kind}")
    if small:
        return tag[4 : 4 + small]
    if size > end - stream.tell():
        raise ValueError(f"a header of {size} bytes")
    return stream.read(size + -size % 8)[:size]


# ---- MAT 7.3 --------------------------------------------------------------------------------------------------------


def _from_hdf5(file, item, depth):
    """MATLAB stores arrays transposed, cells as references and strings as codes."""
    if depth > DEEPEST:
        raise ValueError(f"cells nested deeper than {DEEPEST}")
    if hasattr(item, "keys"):
        return {name: _from_hdf5(file, item[name], depth + 1) for name in item}
    if item.nbytes > 1100 * item.id.get_storage_size() + SPARE:  # the best that gzip can do is 1032
        raise ValueError(f"{item.name} of shape {item.shape} in {item.id.get_storage_size()} bytes")
    kind = item.attrs.get("MATLAB_class", b"")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == b"char" else np.empty((0, 0), object if kind == b"cell" else float)
    values = item[()]
    if item.dtype == object:
        return _objects([_from_hdf5(file, file[each], depth + 1) for each in values.T.ravel()], values.T.shape)
    return "".join(map(chr, values.T.ravel())) if kind == b"char" else values.T
