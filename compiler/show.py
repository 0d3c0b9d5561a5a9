"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import ExpectedRecord, VerificationRecord
from pocketphi.compiler.bench import Speed
from pocketphi.compiler.evaluate import Evaluation
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.format_rows import FormatRow, format_rows
from pocketphi.compiler.graph_words import graph_rows
from pocketphi.compiler.plan import Plan
from pocketphi.compiler.precision import recorded_policy
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.terminal import console, plain
from pocketphi.targets import find_target
from pocketphi.targets.memory import Footprint


def bundle(made: Bundle, checked: bool) -> None:
    """What a bundle holds. checked: whether its files are known to be those that the manifest speaks of."""
    manifest = made.manifest
    model = manifest.model
    table = _table(f"{made.path}: {manifest.source.model}, {model.parameters / 1e6:,.0f} M parameters")
    recipe = manifest.recipe
    table.add_row("recipe", plain(recipe.described()))
    for adapter in manifest.source.adapters:
        table.add_row("adapter", plain(f"{adapter.name}, weight {adapter.weight:g}, {adapter.blake3[:12]}"))
    for one in manifest.adapters:
        ranks = sorted(set(one.ranks.values()))
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        parts = f"{rank}, {len(one.ranks)} weights, {_size(one.bytes)}, weight {one.weight:g}, {one.blake3[:12]}"
        table.add_row("switched adapter", plain(f"{one.name}: {parts}"))
    _graph(table, manifest.operators)
    table.add_row("on disk", f"{_size(manifest.bytes)} in {len(manifest.files)} files")
    for name, target in manifest.targets.items():
        per_token = target.kv_cache_bytes_per_token or model.kv_cache_bytes_per_token
        cache = f"{manifest.context(name):,} tokens, {_size(per_token)} of K/V cache each"
        memory = _memory(bundle_footprint(made, name))
        several = len(manifest.targets) > 1
        table.add_row("context", f"{name}: {cache}" if several else cache)
        table.add_row("memory to run", f"{name}: {memory}" if several else memory)
    for entry in manifest.passes:
        for place, reason in entry.refused:
            table.add_row("left alone", plain(f"{entry.name}: {place}: {reason}"))
    for name, target in manifest.targets.items():
        for note in target.notes:
            table.add_row(plain(name), plain(note))
    console().print(table)
    if recipe.rules:
        config = read_config(made.path)
        targets = [find_target(name).options_of(record) for name, record in manifest.targets.items()]
        formats(format_rows(recorded_policy(recipe, config.tied_embeddings), config, targets), recipe.expected)
    if manifest.verification:
        verification(manifest.verification, earlier=not checked)
    else:
        console().print("not verified: run 'pocketphi verify'")


def files(made: Bundle, signed_by: str | None) -> None:
    """That all files are as the manifest says."""
    size = f"{len(made.manifest.files)} files, {_size(made.manifest.bytes)}"
    console().print("[green]ok[/]", plain(f"{made.path}: {size}, all as the manifest says"))
    if signed_by:
        console().print(f"[green]ok[/] signed with the key {signed_by}", markup=True)


def verification(recorded: VerificationRecord, earlier: bool = False) -> None:
    """The checks, one a line. earlier: they were made when the bundle was compiled, and nothing was looked at since."""
    title = "verification when it was compiled" if earlier else "verification"
    table = _columns(title, "", "check", ">measured", ">bound", "detail")
    for check in recorded.checks:
        mark = "[green]ok[/]" if check.ok else "[red]FAILED[/]"
        bound = f"{check.bound:.0e}" if check.bound else "0"
        table.add_row(mark, plain(check.name), f"{check.measured:.2g}", bound, plain(check.detail))
    if recorded.checks:
        console().print(table)
    if any("KL" in check.name for check in recorded.checks):
        console().print("KL: how far two predictions of the next token are apart, in nats a token; 0: the same")
    error = recorded.quantization_error
    if error:
        kl, top1, tokens = (error.get(key, float("nan")) for key in ("kl", "top1", "tokens"))
        console().print(f"quantization error: KL {kl:.4f} nats/token, top-1 {top1:.3f} over {tokens:.0f} tokens")
    if recorded.ok is None:
        console().print("[yellow]not verified[/], because", plain(recorded.reason or ""))
        return
    if recorded.ok and recorded.reason:
        console().print("[yellow]but[/]", plain(recorded.reason))
    if recorded.ok and earlier:
        console().print("verified when it was compiled; the files were not checked here: 'pocketphi verify' does that")
    else:
        console().print("[green]verified[/]" if recorded.ok else "[red]NOT verified[/]")


def plan(made: Plan) -> None:
    """What a compile would do."""
    table = _table(f"plan for {made.model}: {made.parameters / 1e6:,.0f} M parameters, {made.layers} layers")
    _graph(table, made.operators)
    table.add_row("on disk", f"{_size(made.artifact)}, without the tokenizer")
    table.add_row("memory to compile", f"about {_size(made.compile_memory)}")
    for name, run in made.run.items():
        table.add_row("memory to run", f"{name}: {_memory(run)}" if len(made.run) > 1 else _memory(run))
    for name, place, reason in made.refused:
        table.add_row("left alone", plain(f"{name}: {place}: {reason}"))
    for note in made.notes:
        table.add_row("note", plain(note))
    console().print(table)
    formats(made.formats, made.expected)


def formats(rows: Sequence[FormatRow], expected: ExpectedRecord | None) -> None:
    """Which weights have which formats, and what that is expected to cost; nothing where there is one format."""
    if rows:
        table = _columns("formats", "weights", ">bits", ">size", "formats")
        for row in rows:
            table.add_row(plain(row.kind), f"{row.bits:.2f}", _size(row.bytes), plain(row.formats))
        console().print(table)
    if expected:
        console().print(
            plain(f"chosen for {expected.budget}: expected KL {expected.kl:.3g} nats/token to the float model")
        )


def evaluation(result: Evaluation) -> None:
    """Perplexity and distance."""
    table = _table(f"{result.model} over {result.tokens:,} tokens in windows of {result.window}")
    table.add_row("perplexity", f"{result.perplexity:.3f}")
    if result.kl is not None:
        table.add_row(f"of {result.reference}", f"{result.reference_perplexity:.3f}")
        table.add_row("KL to it", f"{result.kl:.4g} nats/token")
        table.add_row("same top-1", f"{result.top1:.4f}")
    console().print(table)


def speeds(measured: list[Speed]) -> None:
    """Tokens a second."""
    first = measured[0]
    rates = f">prefill {first.prompt}, tokens/s", f">decode {first.generated}, tokens/s"
    table = _columns("medians", ">threads", *rates, ">load, s", ">peak memory")
    for s in measured:
        table.add_row(str(s.threads), f"{s.prefill:.1f}", f"{s.decode:.1f}", f"{s.load:.2f}", _size(s.memory))
    console().print(table)


def checkpoint(source: Checkpoint) -> None:
    """A model's shape and stored types."""
    config = source.config
    table = _table(f"{source.label}: {config.parameters / 1e6:,.0f} M parameters")
    table.add_row(
        "shape",
        f"{config.layers} layers, hidden {config.hidden_size}, MLP {config.intermediate_size}, {config.vocab_size:,} tokens",
    )
    table.add_row(
        "attention",
        f"{config.heads} heads, {config.kv_heads} for keys and values, {config.head_dim} wide, {config.rotary_dim} rotated",
    )
    rotary, window = "LongRoPE" if config.long_rope else "default rotary", config.sliding_window or "none"
    table.add_row("positions", f"{config.max_position:,}, window {window}, {rotary}")
    kinds = sorted({info.dtype for info in source.tensors.values()})
    table.add_row(
        "tensors",
        f"{len(source.tensors)}, stored as {', '.join(kinds)}; embedding {'tied' if config.tied_embeddings else 'untied'}",
    )
    for notice in source.notices:
        table.add_row("notice", plain(notice))
    console().print(table)


def _graph(table: Table, operators: Mapping[str, int]) -> None:
    """What was quantized and fused, and what was not."""
    for title, text in graph_rows(operators):
        table.add_row(title, plain(text))


def _table(title: str) -> Table:
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _columns(title: str, *names: str) -> Table:
    """A table with a header. `>` before a name: its values end at the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    return table


def _memory(run: Footprint) -> str:
    return (
        f"about {_size(run.total())}: {_size(run.weights)} of weights, {_size(run.kv_cache())} of K/V cache at "
        f"{run.context:,} tokens"
    )


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"
