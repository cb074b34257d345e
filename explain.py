"""Explain the decisions of an image classifier by counterfactuals.

python explain.py generate --config configs/avatars/explain.yaml
python explain.py refine RUN --threshold 0.2
python explain.py evaluate RUN
python explain.py audit RUN --networks.oracle_classifier FOLDER
python explain.py report RUN --compare RUN2
python explain.py figure RUN --ids ID ID2 --out figure.pdf
python explain.py calibrate --config configs/avatars/explain.yaml
"""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from lit_modules import audit, calibrate, commands, evaluation, refine

COMMANDS = {
    "generate": commands.generate,
    "refine": refine.refine,
    "evaluate": evaluation.evaluate,
    "audit": audit.audit,
    "report": commands.report,
    "figure": commands.figure,
    "calibrate": calibrate.calibrate,
}
WITH_CONFIG = ("generate", "calibrate")
LISTS = ("--compare", "--ids")


def usage() -> str:
    """What the commands do, a line each."""
    lines = [f"  {name:<11}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([__doc__, "commands:", *lines, "", "python explain.py COMMAND --help tells more."])


def main(args: list[str] | None = None) -> None:
    """Run one of the commands."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name in WITH_CONFIG:
        COMMANDS[name](rest)
    elif name in COMMANDS:
        auto_cli(COMMANDS[name], args=one_by_one(rest), prog=f"explain.py {name}")
    else:
        sys.exit(f"error: unknown command {name!r}, choose one of {', '.join(COMMANDS)}")


def one_by_one(args: list[str]) -> list[str]:
    """Write ``--ids a b`` as jsonargparse reads it: ``--ids+ a --ids+ b``."""
    found, option = [], None
    for arg, following in zip(args, [*args[1:], "-"], strict=True):
        if arg in LISTS and not following.startswith("-"):
            option = arg
        elif option and not arg.startswith("-"):
            found += [f"{option}+", arg]
        else:
            found.append(arg)
            option = None
    return found


if __name__ == "__main__":
    main()
