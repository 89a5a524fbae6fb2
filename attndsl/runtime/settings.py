"""Settings: what is chosen when an attention is compiled, and the text in which it travels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Literal, get_args

from attndsl.diagnostics import ArgumentError, did_you_mean

Tune = Literal["auto", "off", "max"]
BACKENDS = ("auto", "triton", "torch", "cpp")
TUNES: tuple[Tune, ...] = get_args(Tune)
TRUTHS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Settings:
    """How an attention runs; what it computes is said by its program alone.

    backend        one of BACKENDS
    tune           "auto": sizes of kernels that `attndsl tune` has stored, else those of the table;
                   "off": those of the table; "max": measured by the first call that needs them
    deterministic  whether results are bitwise the same from run to run
    """

    backend: str = "auto"
    tune: Tune = "auto"
    deterministic: bool = True

    @functools.cached_property
    def text(self) -> str:
        """The backend, and what is not as it is by default: an argument of torch's operators.

        >>> Settings("triton", tune="max", deterministic=False).text
        'triton tune=max deterministic=no'
        """
        words = [self.backend]
        if self.tune != "auto":
            words.append(f"tune={self.tune}")
        if not self.deterministic:
            words.append("deterministic=no")
        return " ".join(words)

    @property
    def shown(self) -> str:
        """For the repr of an attention.

        >>> Settings("torch", deterministic=False).shown
        "backend='torch', deterministic=False"
        """
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {n: v for n, v in chosen.items() if n == "backend" or v != getattr(Settings, n)}
        return ", ".join(f"{name}={value!r}" for name, value in given.items())


DEFAULTS = Settings()


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Settings:
    """The settings of a text form; ArgumentError where it is none.

    >>> parse("triton tune=max") == Settings("triton", tune="max")
    True
    """
    backend, *words = text.split(" ")
    given = dict(word.partition("=")[::2] for word in words)
    tune, deterministic = given.pop("tune", "auto"), given.pop("deterministic", "yes")
    if given or deterministic not in TRUTHS:
        raise ArgumentError(f"settings: not the text of settings: {text!r}")
    return checked(backend, tune, TRUTHS[deterministic])


def checked(backend: object, tune: object, deterministic: object) -> Settings:
    """Settings of values that may be wrong; ArgumentError names the one that is."""
    check_choice("backend", backend, BACKENDS)
    check_choice("tune", tune, TUNES)
    if not isinstance(deterministic, bool):
        raise ArgumentError(f"deterministic: expected True or False, got {deterministic!r}")
    if tune == "max" and backend not in ("auto", "triton"):
        raise ArgumentError(
            f'tune: "max" measures Triton kernels on a GPU, and backend="{backend}" has none; '
            'use tune="auto"'
        )
    return Settings(str(backend), next(name for name in TUNES if name == tune), deterministic)


def check_choice(argument: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(str(value), known) or f"it is one of {', '.join(known)}"
        raise ArgumentError(f"{argument}: unknown {argument} {value!r}; {hint}")
