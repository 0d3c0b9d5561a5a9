"""What a target says of itself. Light: no torch and none of the runtime's packages, as every command reads it."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import Manifest, TargetRecord, VerificationRecord
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.formats import Format, Layout, bytes_of
from pocketphi.graph.options import Options
from pocketphi.targets import missing_extra
from pocketphi.targets.kv_cache import check_cache_type
from pocketphi.targets.memory import Runtime

if TYPE_CHECKING:
    import argparse

    from pocketphi.graph.lazy_weights import LazyWeight
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared


@dataclass(frozen=True, kw_only=True)
class TargetOptions(Options, ABC):
    """What can be asked of one target. target: its name."""

    target: ClassVar[str]

    def __post_init__(self) -> None:
        check_cache_type(self)
        super().__post_init__()

    @property
    def calibrates(self) -> bool:
        """Whether a calibration text decides what the target's files hold, whatever the recipe of the weights."""
        return False

    @abstractmethod
    def kv_cache_bytes(self, config: ModelConfig) -> int:
        """Bytes of a token's keys and values over all layers, in this target's cache."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What of a compile's options concerns every target.

    context: tokens, as many as the model has positions if None; strict: a slow path is an error; version: of pocketphi;
    recipe: how the weights are quantized, in words; prefix: tokens whose cache a bundle is to have; vocabulary: digest of the
    tokenizer's tokens and their numbers, "" without one
    """

    context: int | None = None
    strict: bool = False
    version: str = "0"
    recipe: str = ""
    prefix: tuple[int, ...] = ()
    vocabulary: str = ""


@dataclass(frozen=True)
class Kit:
    """Code for an app. platform, runtime: as the command line names them; folders: of templates; vectors: where the test
    vectors go; rank: a kit of a lower one is taken first; values: for the templates; export: writes more files into a folder,
    and returns their names."""

    platform: str
    runtime: str
    folders: tuple[str, ...]
    vectors: str
    rank: int = 0
    values: Mapping[str, str] | None = None
    export: Callable[[Path], list[str]] | None = None


@dataclass(frozen=True)
class Page:
    """A web page that runs a bundle. folder: of page.html and what it loads; files: these, by name; library: what it needs of
    others, in the folder that `make build/web` fills; settings: for its scripts, of which `files` names what it reads of the
    bundle"""

    folder: Path
    files: tuple[str, ...]
    library: tuple[str, ...]
    settings: Mapping[str, Any]


class Ui(Protocol):
    """Where a command tells what it does."""

    def task(self, title: str, total: int, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:
        """A long step of known size; the value is called with how much was done."""

    def say(self, text: str) -> None:
        """One line of news."""


@dataclass(frozen=True)
class Tools:
    """What the compiler does for a target's own command.

    rebuild: a bundle's quantized program, from the saved weights; verify: the checks of a folder with the files of a bundle;
    raises CheckFailed
    """

    ui: Ui
    rebuild: Callable[[Bundle, Mapping[str, LazyWeight]], Program]
    verify: Callable[[Path, Manifest], VerificationRecord]


class Command(Protocol):
    """A command that only one target has: a module."""

    NAME: str
    TEXT: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Of the command, for its parser."""

    def run(self, arguments: argparse.Namespace, tools: Tools) -> tuple[Any, Callable[[], None]]:
        """What it found, as JSON, and how to show it to people."""


class TextReader(Protocol):
    """A tokenizer of a runtime's own, which its apps use in place of ours."""

    @property
    def name(self) -> str:
        """What it is called."""

    def installed(self) -> bool:
        """Whether it can be asked here."""

    def differences(self, folder: Path, loaded: Any, texts: Sequence[str]) -> list[int]:
        """Which texts it reads otherwise than transformers' tokenizer `loaded` does, from the files in a bundle's folder."""

    def settings(self) -> Mapping[str, bytes]:
        """Files that it wants beside a tokenizer, for a bundle that is not there yet."""

    def notice(self, differ: Sequence[int], texts: Sequence[str]) -> str:
        """What its users should know of those."""


O = TypeVar("O", bound=TargetOptions)  # noqa: E741


class Target(ABC, Generic[O]):
    """A runtime to compile for.

    name, title: as the command line calls it, and as people do
    options:   the class of its options
    extra:     of setup.cfg, with its packages; modules: what these are imported as
    recorded:  the packages that a manifest names; libraries: all whose versions decide its bytes
    codecs:    by name, of the formats of weights that its files can hold at all; `holds` says which with some options
    weights_file: of a bundle; app_files: what else its apps cannot run without, each with what may stand in its place
    default_context: tokens that are planned for where nobody asked for a number
    platforms: systems of devices that it runs on; None for all
    switches:  where a bundle has an adapter that an app switches, `{}` for its name; "" where its runtime cannot
    prefix:    the file of a bundle with the cache of an app's first tokens; "" where its runtime takes none, for the reason
               that `no_prefix` says
    routes_experts: whether its files can read the chosen ones of a layer's experts alone
    measured:  where the numbers of `runtime` come from
    """

    name: ClassVar[str]
    title: ClassVar[str]
    options: ClassVar[type[TargetOptions]]
    extra: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    recorded: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]]
    codecs: ClassVar[Mapping[str, Any]]
    weights_file: ClassVar[str]
    app_files: ClassVar[tuple[tuple[str, ...], ...]]
    default_context: ClassVar[int] = 4096
    platforms: ClassVar[frozenset[str] | None] = None
    routes_experts: ClassVar[bool] = False
    switches: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    no_prefix: ClassVar[str] = "its runtime computes its cache itself"
    measured: ClassVar[str] = "nowhere: an estimate"
    kits: ClassVar[tuple[Kit, ...]] = ()

    @abstractmethod
    def runtime(self, config: ModelConfig, options: O, longest: int, held: int) -> Runtime:
        """How the runtime uses memory. longest, held: tokens that the files are for, and that the cache holds."""

    def holds(self, options: O) -> Mapping[str, Any]:
        """The codecs of the formats that its files can hold when they are made with these options."""
        return self.codecs

    def instead(self, form: type[Format]) -> str:
        """What a user may do where the files that were asked for cannot hold a format."""
        return form.instead

    def weight_bytes(self, form: str, layout: Layout, options: O) -> int:
        """What a weight takes in its file; in canonical form where no codec holds the format. layout: the weight's parts."""
        return self.bytes_held(self.codecs[form], layout, options) if form in self.codecs else bytes_of(layout)

    def bytes_held(self, codec: Any, layout: Layout, options: O) -> int:
        """What one of the target's codecs makes of a weight."""
        return int(codec.bytes_of(layout))

    def is_fast(self, form: str, block: int) -> bool:
        """Whether its runtime has a kernel for such blocks. A choice among formats leaves out those that it runs slowly."""
        return True

    @abstractmethod
    def prepare(self, program: Program, options: O, asked: Asked) -> Prepared:
        """Plan the files of a quantized program. Raises InputError for what cannot be written as asked."""

    @abstractmethod
    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        """The target's files in a bundle, to be run here."""

    def check_installed(self, options: O) -> None:
        """Raise CannotRun, naming what to install, where this cannot be compiled for."""
        self.require(*self.modules)

    def require(self, *modules: str) -> None:
        """Raise CannotRun, naming what to install, where one of these is missing."""
        for name in modules:
            if importlib.util.find_spec(name) is None:
                raise missing_extra(self, ModuleNotFoundError(name=name))

    def check_runs_here(self, options: O) -> None:
        """Raise CannotRun, before any work, where it is known that this machine cannot run what the target writes."""
        return

    def options_of(self, record: TargetRecord) -> O:
        """The options that a bundle was made with, as far as they decide its memory."""
        return self.options()  # type: ignore[return-value]

    def key(self, options: O) -> list[str]:
        """What else decides its bytes: a compiler, a CPU."""
        return []

    def kit_values(self, record: TargetRecord) -> Mapping[str, Any]:
        """For an app kit's templates. Raises InputError for files that no kit of ours runs."""
        return {}

    def page(self, folder: Path, record: TargetRecord, files: Mapping[str, int]) -> Page | None:
        """A web page that runs its files in a browser. files: of the bundle, with their sizes. None where there is none; raises
        InputError for a bundle that no browser can run."""
        return None

    def commands(self) -> list[Command]:
        """Commands that only this target has."""
        return []

    def text_reader(self) -> TextReader | None:
        """The tokenizer that its apps use, where it is not ours."""
        return None
