"""A run once more, with the same parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.runbooks import parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter


def same_parameters(
    runbook: Runbook, recorded: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """Return the parameters of a run, to be used again, with some of them replaced.

    All of them are settled by the record, also those that had their default: a default that has changed
    since does not change what is repeated.

    Parameters
    ----------
    runbook
        As it is now.
    recorded
        Every parameter that the run had, as ``result.json`` has them.
    given
        What shall be another this time.

    Raises
    ------
    ParameterError
        When the runbook takes other parameters than it did, which are named; a parameter that is new or
        of another type may be given. And when a given one does not fit.
    """
    settled = parameters.check(runbook, given)
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    lost = [name for name in recorded if name not in declared]
    new = [name for name in declared if name not in recorded and name not in settled]
    other = [
        name
        for name, value in recorded.items()
        if name in declared and name not in settled and not _fits(declared[name], value)
    ]
    changes = [
        f"{words} {', '.join(names)}"
        for words, names in (
            ("it no longer takes", lost),
            ("it has taken since", new),
            ("of another type or with other choices now:", other),
        )
        if names
    ]
    if changes:
        raise ParameterError(
            f"The parameters of {runbook.name} have changed since that run.",
            why=f"{'; '.join(changes)}."[0].upper() + f"{'; '.join(changes)}."[1:],
            cure=f"Run it anew: `vmsnix run {runbook.name} --help` lists its parameters."
            if lost
            else "Give these, behind the id.",
        )
    return {**recorded, **settled}


def _fits(parameter: Parameter, value: object) -> bool:
    if isinstance(value, str) and parameter.type.kind != "str":
        return False  # text is parsed when people give it; a record has values
    if isinstance(value, str) and "[secret removed" in value:
        return False
    try:
        parameters.convert(parameter, value)
    except ParameterError:
        return False
    return True
