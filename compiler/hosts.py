"""The hosts of a bundle's targets, and whether one runs here."""

from __future__ import annotations

from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import Manifest, vocabulary_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.reading import named
from pocketphi.targets import find_target, packages_of
from pocketphi.targets.base import Draft, Host, Runner, switch
from pocketphi.targets.draft_bundle import check_tokens, open_draft
from pocketphi.targets.target import TargetOptions


def open_host(folder: Path, manifest: Manifest, target: str | None = None) -> Host:
    """The host of one of a bundle's targets, the first if None. Raises InputError where the bundle does not hold it."""
    held = manifest.targets
    name = target or next(iter(held))
    if name not in held:
        raise InputError(f"--target {name}: {folder} holds {', '.join(held)}")
    positions = read_config(folder).max_position
    if not 0 < manifest.context(name) <= positions:
        raise InputError(f"{folder}: holds {manifest.context(name)} tokens, config.json says {positions} positions")
    found = find_target(name)
    with packages_of(found):
        return found.open_host(folder, held[name])


def check_adapter(manifest: Manifest, adapter: str | None) -> None:
    """Raises InputError for an adapter that the bundle does not have."""
    if adapter is not None and adapter not in manifest.switched:
        held = ", ".join(manifest.switched) or "none: an adapter gets into a bundle by compile --adapter NAME=DIR"
        raise InputError(f"--adapter {named(adapter)}: there is no such adapter in the bundle; it holds {held}")


def check_guesses(draft: Draft, host: Host, bundle: Bundle) -> None:
    """Raises InputError where the files of a bundle cannot check guesses."""
    if host.no_guesses:
        raise InputError(f"--draft {draft}: {bundle.path} {host.no_guesses}; leave it out")


def check_draft(draft: Draft, host: Host, bundle: Bundle, target: str | None) -> None:
    """Raises InputError for a bundle that cannot guess for another one. host: of the other's files for a target."""
    if not isinstance(draft, Path):
        return
    check_guesses(draft, host, bundle)
    name = target or next(iter(bundle.manifest.targets))
    vocabulary = vocabulary_of(bundle.manifest.text)
    check_tokens(open_draft(draft, name), read_config(bundle.path).vocab_size, vocabulary, str(bundle.path))


def runner_of(host: Host, manifest: Manifest, adapter: str | None, max_tokens: int) -> Runner:
    """A runner that gives every token's logits, with one of the bundle's adapters switched on. Raises InputError for one that
    the bundle does not have."""
    check_adapter(manifest, adapter)
    return _switched(host.runner(max_tokens, every_position=True), adapter)


def talker_of(
    host: Host, manifest: Manifest, adapter: str | None, max_tokens: int, threads: int = 0, draft: Draft = "auto"
) -> Runner:
    """A runner for one text whose tokens come one by one (`Host.talker`), with an adapter switched on. Raises InputError for
    one that the bundle does not have."""
    check_adapter(manifest, adapter)
    return _switched(host.talker(max_tokens, threads, draft), adapter)


def _switched(runner: Runner, adapter: str | None) -> Runner:
    if adapter is not None:
        switch(runner, adapter)
    return runner


def check_runs_here(options: TargetOptions) -> None:
    """Raises CannotRun, before any work, where it is known that this machine cannot run what a target writes."""
    target = find_target(options.target)
    with packages_of(target):
        target.check_runs_here(options)
