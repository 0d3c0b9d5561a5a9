"""The command line: parse, call one function, show what it returns.

Exit codes: 0 done, 1 verification or budget not met, 2 bad input, 3 our bug.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import io
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.compiler import __version__
from pocketphi.compiler.cli_build import add_build_commands
from pocketphi.compiler.cli_devices import device_arguments, for_device, read_limit
from pocketphi.compiler.cli_documents import add_document_commands
from pocketphi.compiler.cli_eval import add_eval_command, add_lm_eval_command
from pocketphi.compiler.cli_options import add_options, add_target_options, options_of, target_argument
from pocketphi.compiler.options import DEFAULT_TARGET, Limits, ProgramOptions, RecipeOptions
from pocketphi.compiler.ui import PlainUi, ui_of
from pocketphi.graph import stopping
from pocketphi.graph.errors import InputError, PocketphiError
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.printable import one_line
from pocketphi.graph.reading import named, place_of
from pocketphi.targets import TARGETS, all_targets
from pocketphi.targets.target import Command

if TYPE_CHECKING:
    from pocketphi.artifacts.retrieval.passages import Passage

MODEL_HELP = "a Hugging Face folder, a .gguf file, 'sample', or 'random:phi-3-mini-4k' and other published shapes"


def entry() -> int:
    """Entry point of the console script: `main` in a process of its own.

    Cycles are not collected: a command ends before they add up to much (12 MB), and looking for them while torch and
    transformers are imported and traced takes a quarter of the time until the first weight is read. Nor are they at the end,
    where Python would look through everything once more, for most of a second.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no Δ gets a question mark, not an error
    gc.disable()
    code = main()
    stopping.done()
    gc.freeze()
    if stopping.was_heard():  # Python would end with another code where it cannot write to a terminal that is gone
        stopping.end()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        arguments = parser().parse_args(argv)
        _refuse_odd(arguments)
        _check_current_folder()
        level = logging.INFO if arguments.verbose else logging.ERROR
        logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
        _quiet_libraries(arguments.verbose, getattr(arguments, "online", False))
        return int(arguments.run(arguments))
    except PocketphiError as error:
        if stopping.was_heard():
            return _stopped()
        return _ended(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if stopping.was_heard():
            return _stopped()
        if short := lack(error):
            return _ended(short, 2)
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return _ended(f"this is a bug of ours: {type(error).__name__}: {error}", 3)


def _ended(line: str, code: int) -> int:
    """The exit code, with what there is to say: it is told all the same where nobody can be told the line."""
    with contextlib.suppress(OSError):
        print(f"pocketphi: {line}", file=sys.stderr, flush=True)  # noqa: T201
    return code


_MESSAGES = ("prompt", "system", "question")
"""Arguments that a model reads."""


def _refuse_odd(arguments: argparse.Namespace) -> None:
    """An empty name would be the current folder, or count as one that was not given; an empty message is a message. Names of
    files may be of any bytes, what a model or an app reads may not."""
    for name, value in vars(arguments).items():
        values, flag = value if isinstance(value, list) else [value], name.replace("_", "-")
        if "" in values and name not in _MESSAGES:
            raise InputError(f"{flag}: an empty text was given; is a variable of the shell not set?")
        for text in values:
            if isinstance(text, str) and name in (*_MESSAGES, "model_id"):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise InputError(f"--{flag}: the text is no UTF-8 at its character {error.start}") from None


def _check_current_folder() -> None:
    """Libraries end the process in one that was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the current folder was deleted; go to another one and start again") from None


def _stopped() -> int:
    if not stopping.was_heard():  # else the process ends with this line
        print(stopping.LINE, file=sys.stderr)  # noqa: T201
    return stopping.EXIT_CODE


def lack(error: Exception) -> str:
    """What this machine is short of, where an error tells of that; empty for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: raise the limit (ulimit -n) and start again"
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP):
        return f"{named(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: not all could be written; free some space and start again"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"{error.strerror}: not all could be written; raise the limit (ulimit -f) and start again"
    short = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if short or isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory; nothing was kept. Try --recipe rtn, or a machine with more"
    if "failed to map segment" in str(error):  # all that the loader says
        return f"{error}: is there enough memory, and may files of its folder be run?"
    return ""


class _Parser(argparse.ArgumentParser):
    """Leaves an empty path as it is, for `_refuse_empty`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind in (Path, place_of):
            self.register("type", kind, lambda text, kind=kind: kind(text) if text else text)


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    common.add_argument("-v", "--verbose", action="store_true", help="log what each pass did")
    top = _Parser(prog="pocketphi", description="Compile Phi-3 models for phones, provably right.")
    top.add_argument("--version", action="version", version=f"pocketphi {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    _compile_arguments(command("compile", _compile, "compile a model to a verified bundle"))

    verify = command("verify", _verify, "check a bundle's files and numbers; exit 1 where a check fails")
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--reference", metavar="MODEL", help="also measure the quantization error against this model")
    add_options(verify, ProgramOptions, ["lora"])
    verify.add_argument("--key", type=Path, metavar="PEM", help="also the signature, by this Ed25519 public key")
    verify.add_argument("--files-only", action="store_true", help="checksums and signature, and nothing is run")
    verify.add_argument("--target", choices=TARGETS, help="only this one of the bundle's targets (default: all)")

    for asking in (add_eval_command(command), add_lm_eval_command(command)):
        _adapter_argument(asking)
        _target_argument(asking)

    chat = command("chat", _chat, "talk to a bundle")
    chat.add_argument("bundle", type=Path)
    chat.add_argument(
        "--prompt", help="one message, one reply (default: a conversation; Ctrl-C stops an answer, Ctrl-D leaves)"
    )
    chat.add_argument("--system", help="the system message")
    chat.add_argument(
        "--max-tokens", type=int, help="size of the K/V cache (default: what the bundle holds, at most 2048)"
    )
    chat.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (default)")
    chat.add_argument("--threads", type=int, default=0, help="CPU threads (default: the machine's cores)")
    form = chat.add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="answers are JSON by this schema (extra 'json')")
    form.add_argument("--grammar", type=Path, metavar="FILE", help="answers are what this grammar says, in Lark's form")
    _draft_argument(chat, "auto")
    chat.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        help="go on with the conversation in this file, and keep it there after each answer, where the runtime can",
    )
    chat.add_argument(
        "--docs", type=Path, metavar="INDEX", help="answer from the documents of this index, made by 'pocketphi index'"
    )
    _adapter_argument(chat)
    _target_argument(chat)

    serve = command(
        "serve", _serve, "answer programs that speak OpenAI's chat-completions, from a bundle on this machine"
    )
    serve.add_argument("bundle", type=Path)
    serve.add_argument("--host", help="address to listen at (default: this machine alone)")
    serve.add_argument("--port", type=int, help="default 8642; 0 takes one that is free")
    serve.add_argument(
        "--max-tokens", type=int, help="size of the K/V cache (default: what the bundle holds, at most 2048)"
    )
    serve.add_argument("--threads", type=int, default=0, help="CPU threads (default: the machine's cores)")
    _draft_argument(serve, "auto")
    _target_argument(serve)

    bench = command("bench", _bench, "tokens a second of a bundle on this machine")
    bench.add_argument("bundle", type=Path)
    bench.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts to measure (default 1 2)")
    bench.add_argument("--prompt-tokens", type=int, default=512, help="length of the prefill (default %(default)s)")
    bench.add_argument("--generate", type=int, default=64, help="decode steps (default %(default)s)")
    bench.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up (default %(default)s)")
    _draft_argument(bench, "none")
    _adapter_argument(bench)
    _target_argument(bench)

    inspect = command("inspect", _inspect, "what a bundle or a model holds")
    inspect.add_argument("model", metavar="BUNDLE|MODEL")
    add_options(inspect, ProgramOptions, ["lora"])
    inspect.add_argument("--policy", action="store_true", help="print a bundle's rules as a file for compile --policy")

    add_build_commands(command)
    add_document_commands(command)
    for target in all_targets():
        for own in target.commands():
            own.add_arguments(command(own.NAME, _target_command(own), own.TEXT))

    make = command("make-checkpoint", _make_checkpoint, "write a model as a Hugging Face folder for other tools")
    make.add_argument("model", help=MODEL_HELP)
    add_options(make, ProgramOptions, ["lora"])
    make.add_argument("-o", "--out", type=place_of, required=True, help="folder to make")
    make.add_argument(
        "--fold-norms", action="store_true", help="fold the norm weights into the projections behind them"
    )
    make.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16", help="default %(default)s")

    write = command("make-text", _make_text, "have a model write a text that it can be calibrated on")
    write.add_argument("model", help=MODEL_HELP)
    add_options(write, ProgramOptions, ["lora"])
    write.add_argument("-o", "--out", type=place_of, required=True, help="file to make, for compile --calibration")
    write.add_argument("--tokens", type=int, default=14336, help="how many tokens it writes (default %(default)s)")
    write.add_argument("--seed", type=int, default=0, help="another one gives another text (default %(default)s)")
    return top


def _draft_argument(p: argparse.ArgumentParser, default: str) -> None:
    p.add_argument(
        "--draft",
        type=lambda text: text if text in ("auto", "none") else Path(text),
        metavar="auto|none|BUNDLE",
        default=default,
        help="whether what comes next is guessed, where a bundle can check guesses: from the text, or by a smaller model "
        "with the same tokenizer too; docs/ tells where it changes no answer (default %(default)s)",
    )


def _target_argument(p: argparse.ArgumentParser) -> None:
    p.add_argument("--target", choices=TARGETS, help="which of the bundle's targets (default: the first)")


def _adapter_argument(p: argparse.ArgumentParser) -> None:
    p.add_argument("--adapter", metavar="NAME", help="switch on an adapter of the bundle (default: none)")


def _compile_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help=MODEL_HELP)
    p.add_argument("-o", "--out", type=Path, help="the bundle's folder (default: MODEL-bundle)")
    target_argument(p, f"default {DEFAULT_TARGET}; may be repeated")
    add_options(p, RecipeOptions)
    add_options(p, ProgramOptions)
    add_target_options(p)
    device_arguments(p)
    add_options(p, Limits)
    p.add_argument("--dry-run", action="store_true", help="only the plan: sizes, memory, what is fused and quantized")


def _target_command(made: Command) -> Callable[[argparse.Namespace], int]:
    """How to run a command that only one target has."""

    def run(a: argparse.Namespace) -> int:
        from pocketphi.compiler.verify import tools

        data, human = made.run(a, tools(ui_of(a)))
        _print(a, data, human)
        return 0

    return run


def _compile(a: argparse.Namespace) -> int:
    from pocketphi.compiler import show

    out = a.out or Path(Path(a.model.replace(":", "-")).name.removesuffix(".gguf") + "-bundle")
    options, allowed = for_device(a, options_of(a, out, **read_limit(a)), ui_of(a))
    if a.dry_run:
        from pocketphi.artifacts.bundle import check_replaceable
        from pocketphi.compiler.plan import plan

        check_replaceable(options.out, options.force)
        made = plan(options, ui_of(a), allowed)
        _print(a, made.as_json(), lambda: show.plan(made))
        return 0
    from pocketphi.compiler.compile import compile_model

    bundle = compile_model(options, ui_of(a), allowed=allowed)
    summary = {"bundle": str(bundle.path), **bundle.manifest.as_json()}
    _print(a, summary, lambda: show.bundle(bundle, checked=True))
    return 0


def _verify(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.signature import check_signature
    from pocketphi.compiler import show
    from pocketphi.compiler.verify import verify_folder

    bundle = Bundle.open(a.bundle)
    signed = check_signature(a.bundle, a.key) if a.key else None
    if a.files_only:
        files = {"bundle": str(a.bundle), "files": len(bundle.manifest.files), "signed_by": signed}
        _print(a, files, lambda: show.files(bundle, signed))
        return 0
    lora = _lora(a)
    result = verify_folder(bundle.path, bundle.manifest, ui_of(a), a.reference, a.target, lora=lora)
    _print(a, result.recorded().as_json(), lambda: show.verification(result.recorded()))
    return 0 if result.ok else 1


def _chat(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.kits.conversation import MessageTooLong
    from pocketphi.compiler.chat import Chat
    from pocketphi.compiler.guided import AnswerCut, lark_grammar, schema_grammar
    from pocketphi.compiler.typed_lines import NotText, messages, text_of

    if a.json and a.prompt is None:
        raise InputError("--json: a conversation has no end to print; give a --prompt")
    if not 0 <= a.temperature < math.inf:
        raise InputError(f"--temperature {a.temperature}: expected 0 or a positive number")
    grammar = schema_grammar(a.json_schema) if a.json_schema else lark_grammar(a.grammar) if a.grammar else None
    chat = Chat(a.bundle, a.max_tokens, a.system, a.threads, a.target, a.adapter, a.draft, a.session, a.docs)
    where = f"--json-schema {a.json_schema}" if a.json_schema else f"--grammar {a.grammar}"
    form = chat.form(grammar, where) if grammar is not None else None
    if a.prompt is not None:
        # an answer with a form is given out when it is whole, and not at all where it is cut
        reply = chat.say(a.prompt, a.temperature, (lambda piece: None) if a.json or form else _write, form=form)
        if form and not a.json:
            _write(reply.text)
        told = {**vars(reply), "sources": [vars(one) for one in reply.sources]}
        _print(a, {**told, "tokens_per_second": reply.tokens_per_second}, lambda: _write("\n" + _named(reply.sources)))
        return 0
    for line in messages():
        try:
            reply = chat.say(text_of(line), a.temperature, show=_write, form=form)
            _write(f"\n  [{reply.tokens} tokens, {reply.tokens_per_second:.0f} tokens/s]\n{_named(reply.sources)}")
        except AnswerCut as error:  # as much as was shown belongs to the conversation
            print(f"\npocketphi: {error}", file=sys.stderr)  # noqa: T201
        except (MessageTooLong, NotText) as error:  # the conversation is as it was, and goes on
            print(f"pocketphi: {error}", file=sys.stderr)  # noqa: T201
        except KeyboardInterrupt:  # ends this answer; the conversation goes on
            if stopping.is_for_all():
                raise
            stopping.obeyed()
            _write("\n  [stopped]\n")
    return 0


def _named(sources: Sequence[Passage]) -> str:
    """Where the passages stand that were put before a question, the best one first."""
    return "".join(f"  from {one_line(one.source)}\n" for one in sources)


def _serve(a: argparse.Namespace) -> int:
    from pocketphi.compiler.serve.run import LOOPBACK, PORT, serve

    if a.json:
        raise InputError("--json: a server has no end to print; leave it out")
    port = PORT if a.port is None else a.port
    serve(a.bundle, a.host or LOOPBACK, port, a.max_tokens, a.threads, a.target, a.draft, PlainUi().say)
    return 0


def _bench(a: argparse.Namespace) -> int:
    from pocketphi.compiler import show
    from pocketphi.compiler.bench import bench

    speeds = bench(a.bundle, a.threads, a.prompt_tokens, a.generate, a.rounds, ui_of(a), a.target, a.adapter, a.draft)
    _print(a, [vars(speed) for speed in speeds], lambda: show.speeds(speeds))
    return 0


def _inspect(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.manifest import MANIFEST
    from pocketphi.compiler import show
    from pocketphi.compiler.precision import policy_of_bundle
    from pocketphi.graph.opening import open_checkpoint

    if (Path(a.model) / MANIFEST).is_file():
        if _lora(a):
            raise InputError(f"--lora: {a.model} is a bundle, which holds its adapters already")
        bundle = Bundle.open(Path(a.model), check=False)
        if a.policy:
            _write(policy_of_bundle(bundle))
            return 0
        held = {"files_checked": False, **bundle.manifest.as_json()}
        _print(a, held, lambda: show.bundle(bundle, checked=False))
        return 0
    if a.policy:
        raise InputError(f"--policy: {a.model} is a model, not a bundle: it has no rules")
    source = open_checkpoint(a.model, _lora(a))
    tensors = {name: {"shape": info.shape, "dtype": info.dtype} for name, info in source.tensors.items()}
    adapters = [{"name": one.lora.name, "blake3": one.blake3, "weight": one.lora.weight} for one in source.adapters]
    told: dict[str, Any] = {"config": source.config.to_hf(), "tensors": tensors, "notices": list(source.notices)}
    told |= {"adapters": adapters} if adapters else {}
    _print(a, told, lambda: show.checkpoint(source))
    return 0


def _make_checkpoint(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.folder import new_folder
    from pocketphi.graph.fold_norms import FoldedNorms
    from pocketphi.graph.opening import open_checkpoint
    from pocketphi.graph.write_checkpoint import DTYPES, write_checkpoint

    source = open_checkpoint(a.model, _lora(a))
    for notice in source.notices:
        ui_of(a).say(notice)
    source = FoldedNorms(source) if a.fold_norms else source
    total = source.config.parameters * DTYPES[a.dtype].itemsize
    if a.out.exists():
        raise InputError(f"{a.out}: exists; choose another -o")
    with new_folder(a.out, needed_bytes=total) as folder, ui_of(a).task("write", total, "bytes") as advance:
        write_checkpoint(source, folder, a.dtype, advance)
    _print(a, {"checkpoint": str(a.out), "bytes": total}, lambda: _write(f"{a.out}: {total / 1e6:,.0f} MB\n"))
    return 0


def _make_text(a: argparse.Namespace) -> int:
    from pocketphi.compiler.own_text import own_text
    from pocketphi.graph.opening import open_checkpoint
    from pocketphi.graph.writing import write_whole

    if a.out.exists():
        raise InputError(f"{a.out}: exists; choose another -o")
    if not a.out.parent.is_dir():
        raise InputError(f"{a.out}: there is no folder {a.out.parent}; make it, or choose another -o")
    source = open_checkpoint(a.model, _lora(a))
    for notice in source.notices:
        ui_of(a).say(notice)
    text = own_text(source, a.tokens, a.seed, ui_of(a)).encode()
    write_whole(a.out, text, "--out")
    said = f"{a.out}: {len(text) / 1e3:,.0f} kB; compile with --calibration {a.out} --calibration-tokens 16384\n"
    _print(a, {"text": str(a.out), "bytes": len(text)}, lambda: _write(said))
    return 0


def _lora(a: argparse.Namespace) -> tuple[Lora, ...]:
    return tuple(getattr(a, "lora", ()))


def _print(a: argparse.Namespace, data: Any, human: Any) -> None:
    if a.json:
        _write(json.dumps(data, indent=1, default=str) + "\n")
    else:
        human()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _quiet_libraries(verbose: bool, online: bool) -> None:
    """Advice of the libraries about themselves, which a user of ours can do nothing about. online: whether data sets may be
    fetched."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not verbose:
        import warnings

        warnings.filterwarnings("ignore", module=r"torch\..*|contextlib|transformers\..*")
