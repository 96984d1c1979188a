"""MATLAB files, for the readers of the sets that come as such: MAT 5, and MAT 7.3 (HDF5) through h5py.

A value is a float or integer array, a str, a dict (a struct), or an array of such objects (a cell or an array of
structs), always in the shape that MATLAB shows. It is None where MATLAB holds what is no data, such as a function.

MAT 5 is read here and not by SciPy, whose compiled reader trusts the file: a single wrong bit in the header of an array
ends the whole process with a segmentation fault (SciPy 1.17), and a wrong shape fills the memory."""

import math
import os
import struct
import zlib

import numpy as np

from datasets import optional, refuse_damage

HDF5 = b"\x89HDF\r\n\x1a\n"
ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # the end of the header of a MAT 5 file -> the order of its bytes
MATRIX, COMPRESSED = 14, 15  # types of elements
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {16: "utf-8", 17: "utf-16-{}", 18: "utf-32-{}"}
CELL, STRUCT, OBJECT, CHARACTERS, SPARSE, LAST = 1, 2, 3, 4, 5, 15  # classes of arrays; numbers from 6 to LAST
HEAD = 4096  # bytes of an array that surely hold its name
COMPLEX = 0x800  # a flag beside the class
DEEPEST = 20  # cells in structs in cells ...; those of the data sets go down to 6
SPARE = 65536  # values or bytes that a damaged file may claim too many: they cost nothing


def read_mat(path, names) -> tuple[dict, tuple[str, ...]]:
    """Return the variables `names` as far as the file has them, and notes on what was left over in it. Other variables
    are not looked at, whatever they are. Raise ValueError where the file is damaged."""
    with open(path, "rb") as file:
        header = file.read(520)
        h5py = optional("h5py", path, "a MAT 7.3 file") if HDF5 in (header[:8], header[512:]) else None
        order = ORDERS.get(header[124:128])
        if not h5py and not order:
            advice = "download it again, or save it as such"
            raise ValueError(f"{path}: expected a MAT file (5 or 7.3), found no header of one; {advice}")
        with refuse_damage(path, "a MAT file (5 or 7.3)"):
            if h5py:
                with h5py.File(path, "r") as tree:
                    return {name: _from_hdf5(tree, tree[name], 0) for name in names if name in tree}, ()
            file.seek(128)
            return _from_mat5(file, names, order)


def cells(value, what, path, shape=None):
    """Return `value`; raise ValueError where it is no cell, or none of this shape."""
    if not isinstance(value, np.ndarray) or value.dtype != object or shape not in (None, value.shape):
        expected = f"{what} as a {f'{shape} ' if shape else ''}cell"
        raise ValueError(f"{path}: expected {expected}, found {describe(value)}; download the file again")
    return value


def texts(value) -> list[str]:
    """Return the strings of a cell, of a matrix of characters or of a matrix of their codes, without blanks around."""
    value = np.asarray(value)
    if value.dtype.kind in "iu" and value.ndim == 2:
        value = np.array(["".join(map(chr, line)) for line in value.astype(np.uint16)])
    return [" ".join(text.replace("\0", " ").split()) for text in value.ravel() if isinstance(text, str)]


def number(value, where) -> float:
    """Return a scalar as float, whatever type it was saved in, because arithmetic in uint8 would overflow."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size != 1:
        raise ValueError(f"{where}: expected one number, found {describe(value)}")
    return float(value.item())


def matrix(value, where, columns=None):
    """Return `value`; raise ValueError where it is no real matrix, of `columns` columns if that is given."""
    is_matrix = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == 2
    if not is_matrix or columns not in (None, value.shape[1]):
        expected = f"numbers (n, {columns or 'k'})"
        raise ValueError(f"{where}: expected {expected}, found {describe(value)}; download the file again")
    return value


def field(value, name, where):
    """Return field `name` of a struct; raise ValueError where there is none."""
    if not isinstance(value, dict) or name not in value:
        found = f"a struct of {' '.join(value) or 'nothing'}" if isinstance(value, dict) else describe(value)
        raise ValueError(f"{where}: expected a struct with {name}, found {found}; download the file again")
    return value[name]


def describe(value) -> str:
    """Return a few words on what was found in place of what was expected."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} of {value.dtype}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _objects(items, shape):
    """Return a list of objects, in the order of MATLAB, as an array."""
    return np.fromiter(items, object, len(items)).reshape(shape, order="F")


def _from_mat5(file, names, order) -> tuple[dict, tuple[str, ...]]:
    """Do what `read_mat` does for a file that is open behind its header; `order` is "<" or ">". A MAT 5 file is a row
    of elements, an array one element of several, a cell an array of arrays."""
    end, place, found, notes = os.fstat(file.fileno()).st_size, file.tell(), {}, []
    while len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(order + "II", tag)
        start, wanted = file.tell(), set(names) - found.keys()
        if kind not in (MATRIX, COMPRESSED) or size > end - start and not wanted:
            break
        if size > end - start:
            raise ValueError(f"a variable of {size} bytes that ends too early")
        if wanted and (name := _name(file.read(min(size, HEAD)), kind, order)) in wanted:
            file.seek(start)
            found[name] = _variable(memoryview(file.read(size)), kind, order, notes)
        place = file.seek(start + size)
    if place < end:
        notes.append(f"{end - place} bytes behind the last variable of the file were left over")
    return found, tuple(notes)


def _name(head, kind, order) -> str:
    """Return the name of the variable that begins with the bytes `head`."""
    if kind == COMPRESSED:
        head = zlib.decompressobj().decompress(head, HEAD)[8:]
    parts = _elements(head, order, 3)  # flags, shape and name
    return bytes(parts[2][1]).decode("latin-1") if len(parts) == 3 else ""


def _variable(data, kind, order, notes):
    """Return the value of the variable that the bytes `data` hold."""
    if kind == COMPRESSED:
        inflate = zlib.decompressobj()
        (kind, data), *more = _elements(memoryview(inflate.decompress(data)), order)
        if kind != MATRIX or not inflate.eof:
            raise ValueError(f"a compressed part of type {kind}, or one that ends too early")
        if more or inflate.unused_data:
            notes.append("bytes behind a compressed variable were left over")
    return _array(data, order)


def _elements(data, order, most=None) -> list[tuple]:
    """Return the elements, `most` at most, that `data` holds one after the other, each as its type and its bytes."""
    found, place = [], 0
    while place + 8 <= len(data) and len(found) != most:
        kind, size = struct.unpack_from(order + "II", data, place)
        start, place = place + 8, place + 8 + size + -size % 8
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, size, start, place = kind & 0xFFFF, kind >> 16, start - 4, start
        if start + size > min(place, len(data)):
            raise ValueError(f"a part of {size} bytes that ends too early")
        found.append((kind, data[start : start + size]))
    return found


def _array(data, order, depth=0):
    """Return the value of the array whose element holds the bytes `data`; None where its class is none that is read."""
    if len(data) == 0:
        return np.empty((0, 0))
    if depth > DEEPEST:
        raise ValueError(f"cells nested deeper than {DEEPEST}")
    (_, flags), (_, shape), (_, name), *parts = _elements(data, order)
    (flags,) = struct.unpack_from(order + "I", flags)
    kind = flags & 0xFF
    if kind > LAST or kind in (OBJECT, SPARSE):
        return None
    shape = np.frombuffer(shape, order + "i4").tolist()
    what = f"{bytes(name).decode('latin-1') or 'a part'} of class {kind} and shape {shape}"
    if min(shape) < 0 or max(shape) > max(SPARE, len(data)):  # one side may be huge where another is 0
        raise ValueError(f"{what} in {len(data)} bytes")
    if kind == CELL:
        return _objects(_arrays(parts, order, depth), shape)
    if kind == STRUCT:
        return _structs(parts, order, depth, shape, what)
    if kind == CHARACTERS:
        return _text(parts, order, shape)
    arrays = [np.frombuffer(part, order + NUMBERS[stored]) for stored, part in parts]
    if len(arrays) != (2 if flags & COMPLEX else 1):
        raise ValueError(f"{what} in {len(arrays)} parts")
    return (arrays[0] + 1j * arrays[1] if flags & COMPLEX else arrays[0]).reshape(shape, order="F")


def _arrays(parts, order, depth) -> list:
    """Return the values of the arrays that lie within another."""
    if any(kind != MATRIX for kind, _ in parts):
        raise ValueError(f"parts of a cell or struct of types {sorted({kind for kind, _ in parts})}")
    return [_array(part, order, depth + 1) for _, part in parts]


def _structs(parts, order, depth, shape, what):
    """Return a struct as a dict, or an array of structs as an array of dicts."""
    (_, width), (_, fields), *parts = parts
    (width,) = struct.unpack(order + "i", width)  # bytes of the name of a field
    fields = [bytes(fields[i : i + width]).split(b"\0")[0].decode("latin-1") for i in range(0, len(fields), width)]
    values, count = _arrays(parts, order, depth), math.prod(shape)
    if len(values) != count * len(fields):
        raise ValueError(f"{what} with {len(values)} values of {len(fields)} fields")
    if count == 1:
        return dict(zip(fields, values))
    step = len(fields) or 1
    return _objects([dict(zip(fields, values[i : i + step])) for i in range(0, len(values), step)], shape)


def _text(parts, order, shape):
    """Return a row of characters as a str, several rows as an array of one str each."""
    [(kind, data)] = parts
    if kind in NUMBERS:
        text = "".join(map(chr, np.frombuffer(data, order + NUMBERS[kind])))
    else:
        text = bytes(data).decode(TEXTS[kind].format({"<": "le", ">": "be"}[order]), errors="replace")
    if len(shape) != 2 or shape[0] < 2:
        return text
    return np.array(["".join(line) for line in np.array(list(text)).reshape(shape, order="F")])


def _from_hdf5(tree, item, depth):
    """Return the value of an item of MAT 7.3, which has arrays transposed, cells as references and strings as codes."""
    if depth > DEEPEST:
        raise ValueError(f"cells nested deeper than {DEEPEST}")
    if hasattr(item, "keys"):
        return {name: _from_hdf5(tree, item[name], depth + 1) for name in item}
    if item.nbytes > 1100 * item.id.get_storage_size() + SPARE:  # the best that gzip can do is 1032
        raise ValueError(f"{item.name} of shape {item.shape} in {item.id.get_storage_size()} bytes")
    kind = item.attrs.get("MATLAB_class", b"")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == b"char" else np.empty((0, 0), object if kind == b"cell" else float)
    values = item[()]
    if item.dtype == object:
        items = [_from_hdf5(tree, tree[each], depth + 1) if each else None for each in values.ravel()]
        return _objects(items, values.T.shape)
    if kind == b"char" and values.ndim == 2 and values.shape[1] > 1:  # a name a row
        return np.array(["".join(map(chr, row)) for row in values.T])
    return "".join(map(chr, values.T.ravel())) if kind == b"char" else values.T
