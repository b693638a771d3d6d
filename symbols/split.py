# Owns split DWARF (.dwo, .dwp) and dwz's supplementary files: opening them, proving that they belong to the
# main file (dwo_id, build-id), and their units. Must not interpret entries beyond a unit's root.
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from symbols import dwarf_const as dw
from symbols.data import Data
from symbols.debugfiles import Searched, find_supplement, mount_prefix
from symbols.errors import DebugFileMismatch, SymbolError
from symbols.files import files
from symbols.image import Image
from symbols.units import UT_SPLIT_TYPE, UT_TYPE, Part, Unit, UnitReader

_MAX_FILES = 20_000
_GAP = 1 << 12  # between the number spaces of two files
# .debug_cu_index section codes (DWARF 5, 7.3.5.3; GNU version 2 differs from 5 on)
_COLUMNS5 = {
    1: ".debug_info", 3: ".debug_abbrev", 4: ".debug_line", 5: ".debug_loclists",
    6: ".debug_str_offsets", 7: ".debug_macro", 8: ".debug_rnglists",
}  # fmt: skip
_COLUMNS2 = {
    1: ".debug_info", 2: ".debug_types", 3: ".debug_abbrev", 4: ".debug_line", 5: ".debug_loc",
    6: ".debug_str_offsets", 7: ".debug_macinfo", 8: ".debug_macro",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the main file says of a split unit."""

    unit: Unit
    name: str  # the .dwo file's name
    folder: str  # DW_AT_comp_dir
    ident: int  # dwo_id


@dataclass(slots=True)
class Extra:
    """Opens the other files of one main file. Close it."""

    main: Part
    reader: UnitReader
    ident_of: Callable[[Unit], int | None]  # the dwo_id that a DWARF 4 split unit's root carries
    next_shift: int
    images: list[Image] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # split units that could not be found, in words
    _by_path: dict[str, list[Unit] | str] = field(default_factory=dict)  # or why it cannot be used
    _package: tuple[Image, dict[int, dict[str, Data]], list[Unit]] | None = None
    _no_package: bool = False

    def close(self) -> None:
        for image in self.images:
            image.close()
        self.images.clear()

    def _open(self, path: str) -> Image:
        if len(self.images) >= _MAX_FILES:
            raise self.main.image.section(".debug_info").bad(f"names more than {_MAX_FILES} files")
        image = Image(path, any_machine=True, relocatable=True)
        self.images.append(image)
        return image

    def _place(self, size: int) -> int:
        shift = self.next_shift
        self.next_shift += size + _GAP
        return shift

    # -- supplementary files ---------------------------------------------------------------------

    def supplement(self, searched: Searched | None = None) -> list[Unit]:
        """Units of the file that .gnu_debugaltlink names; [] when it names none.

        Raises NoDebugInfo (missing) and DebugFileMismatch.
        """
        image = find_supplement(self.main.image, searched)
        if image is None:
            return []
        self.images.append(image)
        info = image.section(".debug_info")
        part = Part(image, shift=self._place(info.size))
        self.main.supplement = part
        return self.reader.read(part, info)

    # -- split units -----------------------------------------------------------------------------

    def split(self, skeleton: Skeleton) -> list[Unit]:
        """The split unit of a skeleton, and the type units in its file; [] (and noted) when missing.

        Raises DebugFileMismatch when a file is there whose dwo_id is another.
        """
        found = self._from_package(skeleton)
        if found:
            return found
        wrong = ""
        for path in self._places(skeleton):
            fresh = path not in self._by_path
            if fresh:
                try:
                    self._by_path[path] = self._dwo(path)
                except SymbolError as error:
                    self._by_path[path] = f"{path}: {error.detail}" if files().exists(path) else ""
            units = self._by_path[path]
            if isinstance(units, str):
                wrong = wrong or units
                continue
            own = [unit for unit in units if self.ident_of(unit) == skeleton.ident]
            if own and own[0].skeleton is not None:
                wrong = f"{path}: two units of the executable have one dwo_id"
                continue
            if own:
                own[0].skeleton = skeleton.unit
                types = [unit for unit in units if fresh and unit.kind in (UT_TYPE, UT_SPLIT_TYPE)]
                for unit in types:
                    unit.skeleton = skeleton.unit
                return [*own[:1], *types]
            raise DebugFileMismatch(
                f"holds no unit with dwo_id {skeleton.ident:#018x}, which {self.main.image.path} wants",
                path=path,
            )
        self.missing.append(wrong or f"{skeleton.name} (in {skeleton.folder or '.'}) is missing")
        return []

    def _places(self, skeleton: Skeleton) -> Iterator[str]:
        main = self.main.image.path
        prefix, beside = mount_prefix(main), os.path.dirname(files().real(main))
        yield prefix + os.path.join(skeleton.folder, skeleton.name)
        yield os.path.join(beside, os.path.basename(skeleton.name))

    def _dwo(self, path: str) -> list[Unit]:
        image = self._open(path)
        units: list[Unit] = []
        for name, types in ((".debug_info.dwo", False), (".debug_types.dwo", True)):
            for info in image.sections_named(name):
                part = Part(image, shift=self._place(info.size), suffix=".dwo")
                units += self.reader.read(part, info, types=types)
        return units

    # -- packages --------------------------------------------------------------------------------

    def _from_package(self, skeleton: Skeleton) -> list[Unit]:
        if self._package is None and not self._no_package:
            self._no_package = True
            for path in (f"{self.main.image.path}.dwp", f"{files().real(self.main.image.path)}.dwp"):
                if files().exists(path):
                    image = self._open(path)
                    self._package = (image, _index(image, ".debug_cu_index"), self._package_types(image))
                    break
        if self._package is None:
            return []
        image, index, types = self._package
        windows = index.pop(skeleton.ident, None)  # once: a unit belongs to one skeleton
        if windows is None:
            return []
        units = self._window_units(image, ".debug_info", windows)
        own = [unit for unit in units if self.ident_of(unit) == skeleton.ident]
        for unit in own:
            unit.skeleton = skeleton.unit
        for unit in types:
            unit.skeleton = unit.skeleton or skeleton.unit
        self._package = (image, index, [])
        return [*own[:1], *types]

    def _package_types(self, image: Image) -> list[Unit]:
        found: list[Unit] = []
        for windows in _index(image, ".debug_tu_index").values():
            name = ".debug_types" if ".debug_types" in windows else ".debug_info"
            found += self._window_units(image, name, windows)
        return found

    def _window_units(self, image: Image, name: str, windows: dict[str, Data]) -> list[Unit]:
        share = windows.get(name)
        if share is None:
            return []
        part = Part(image, shift=self._place(share.size), suffix=".dwo", windows=windows)
        return self.reader.read(part, share, types=name == ".debug_types")


def _index(image: Image, name: str) -> dict[int, dict[str, Data]]:
    """Signature -> its windows on the package's sections. DWARF 5, section 7.3.5; GNU's version 2."""
    if not image.has(name):
        return {}
    data = image.section(name)
    version = data.uint(0, 4) if data.uint(0, 4) == 2 else data.uint(0, 2)
    columns, used, slots = data.uint(4, 4), data.uint(8, 4), data.uint(12, 4)
    if version not in (2, 5) or columns > 16 or used > slots or slots * 12 > data.size:
        raise data.bad("is not an index of version 2 or 5")
    names = _COLUMNS5 if version == 5 else _COLUMNS2
    rows = 16 + slots * 12
    codes = [data.uint(rows + 4 * column, 4) for column in range(columns)]
    offsets = rows + 4 * columns
    sizes = offsets + 4 * columns * used
    found: dict[int, dict[str, Data]] = {}
    for slot in range(slots):
        row = data.uint(16 + slots * 8 + slot * 4, 4)
        if not 0 < row <= used:
            continue
        windows: dict[str, Data] = {}
        for column, code in enumerate(codes):
            place = 4 * ((row - 1) * columns + column)
            start, size = data.uint(offsets + place, 4), data.uint(sizes + place, 4)
            if code in names and size:
                whole = image.section(f"{names[code]}.dwo")
                if start + size > whole.size:
                    raise data.bad(f"points beyond {whole.name}")
                windows[names[code]] = Data(whole.buf, whole.base + start, size, whole.name, whole.path)
        found[data.uint(16 + slot * 8, 8)] = windows
    return found


SPLIT_NAMES = (dw.AT_dwo_name, dw.AT_GNU_dwo_name)
