"""What of a machine decides the bytes of a bundle, and whether another machine has the same."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping

from pocketphi.compiler import __version__
from pocketphi.compiler.build_key import our_code, version_of
from pocketphi.graph.cpu import cpu_flags, cpu_maker

_VECTORS = re.compile(r"(avx|amx|sse|fma|f16c|bmi|asimd|sve|sme|i8mm|bf16|fphp|neon)")
_CPU = "CPU"


def describe(packages: Iterable[str], cpu: bool) -> dict[str, str]:
    """This machine, by the names of what may differ. cpu: whether sums of floats decide, whose order is the CPU's."""
    made = {
        "pocketphi": __version__,
        "pocketphi's own code": our_code()[:12],
        "Python": platform.python_version(),
        **{name: version_of(name) or "none" for name in packages},
    }
    if cpu:
        vectors = sorted(flag for flag in cpu_flags() if _VECTORS.match(flag))
        made[_CPU] = " ".join([platform.machine(), cpu_maker(), *vectors])
    return made


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first thing that one machine, `here`, has otherwise than another, `there`, in words; None where all is the same."""
    for name, wanted in there.items():
        has = here.get(name, "none")
        if has == wanted:
            continue
        if name != _CPU:
            return f"has {has} for {name}, the machine that started the build has {wanted}; install the same there"
        mine, other = set(has.split()), set(wanted.split())
        lacks = f"lacks {', '.join(sorted(other - mine)[:4])}" if other - mine else ""
        more = f"has {', '.join(sorted(mine - other)[:4])} besides" if mine - other else ""
        return (
            f"has another CPU, which {' and '.join(filter(None, [lacks, more]))}: sums come out otherwise in their last bits; "
            "use machines of one kind"
        )
    return None
