"""The table of devices, and a user's own lines of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.compiler.build_file import LARGEST, MOST, NAME, check_keys, size_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import nearest, parse_toml, read_whole, show

_TABLE = Path(__file__).with_name("devices.toml")
_USERS = Path("~/.config/pocketphi/devices.toml")
_KEYS = ("title", "platform", "ram", "app", "bandwidth", "features", "sources", "estimates")
NUMBERS = ("ram", "app", "bandwidth", "features")
"""What a source or an estimate is of."""
_PLATFORMS = ("ios", "android", "linux")


@dataclass(frozen=True)
class Device:
    """ram, app: bytes of the device, and what one app may use; bandwidth: bytes a second at best; features: of its CPU;
    sources, estimates: `key: where from` of what was looked up, and of what was not."""

    name: str
    title: str
    platform: str
    ram: int
    app: int
    bandwidth: float
    features: tuple[str, ...]
    sources: tuple[str, ...]
    estimates: tuple[str, ...] = ()

    @property
    def estimated(self) -> set[str]:
        """The numbers that are estimates: without a source."""
        return set(NUMBERS) - {text.partition(":")[0] for text in self.sources}


def read_devices(more: Path | None = None) -> dict[str, Device]:
    """The table, over it the user's (`~/.config/pocketphi/devices.toml`), over it a file. Raises InputError for a bad line."""
    found = _read(_TABLE)
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        if (own := _USERS.expanduser()).is_file():
            found |= _read(own)
    return found | _read(more) if more else found


def find_device(name: str, more: Path | None = None) -> Device:
    """Raises InputError with the nearest name."""
    devices = read_devices(more)
    if name not in devices:
        raise InputError(f"--device {name}: not in the table; {nearest(name, devices)}")
    return devices[name]


def _read(path: Path) -> dict[str, Device]:
    data = parse_toml(read_whole(path, "expected a table of devices in TOML", LARGEST), str(path))
    defaults = data.pop("defaults", {})
    if not isinstance(defaults, dict) or not all(isinstance(shared, dict) for shared in defaults.values()):
        raise InputError(f"{path}: defaults is {show(defaults)}, expected tables, [defaults.ios]")
    check_keys(path, "defaults", defaults, _PLATFORMS)
    for name, shared in defaults.items():
        check_keys(path, f"defaults.{name}", shared, ("sources", "estimates"))
    return {name: _device(path, name, entry, defaults) for name, entry in data.items()}


def _device(path: Path, name: str, entry: Any, defaults: Mapping[str, Any]) -> Device:
    if not NAME.fullmatch(name):
        raise InputError(f"{path}: {show(name)}: expected a name of letters, digits, '.', '_' and '-'")
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {name}: expected a table, [{name}], got {show(entry)}")
    check_keys(path, name, entry, _KEYS)
    for key in ("ram", "bandwidth"):
        if key not in entry:
            raise InputError(f"{path}: {name} lacks {key}; expected at least ram and bandwidth")
    platform = entry.get("platform", "linux")
    if platform not in _PLATFORMS:
        raise InputError(f"{path}: {name}.platform is {show(platform)}, expected one of {', '.join(_PLATFORMS)}")
    ram = _bytes(path, name, "ram", entry)
    shared = defaults.get(platform, {})
    where = f"defaults.{platform}"
    return Device(
        name=name,
        title=_texts(path, name, "title", {"title": [entry.get("title", name)]})[0],
        platform=platform,
        ram=ram,
        app=_bytes(path, name, "app", entry) if "app" in entry else ram // 2,
        bandwidth=float(_positive(path, name, "bandwidth", entry)),
        features=tuple(_texts(path, name, "features", entry)),
        sources=(*_texts(path, name, "sources", entry), *_texts(path, where, "sources", shared)),
        estimates=(*_texts(path, name, "estimates", entry), *_texts(path, where, "estimates", shared)),
    )


def _bytes(path: Path, name: str, key: str, entry: Mapping[str, Any]) -> int:
    if isinstance(entry[key], str):
        return size_of(entry[key], f"{path}: {name}.{key}")
    return int(_positive(path, name, key, entry))


def _positive(path: Path, name: str, key: str, entry: Mapping[str, Any]) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
        raise InputError(f"{path}: {name}.{key} is {show(value)}, expected a positive number")
    return value


def _texts(path: Path, name: str, key: str, entry: Mapping[str, Any]) -> list[str]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) and text.isprintable() for text in value):
        raise InputError(f"{path}: {name}.{key} is {show(value)}, expected a list of texts, each on one line")
    return value
