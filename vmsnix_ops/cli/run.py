"""``vmsnix run``, and the command of each runbook, made from its parameters cell."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from vmsnix_ops.cli.options import no_fingerprint
from vmsnix_ops.records.run_context import NEW_RUN_ID
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.text import echo, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from vmsnix_ops.errors import VmsnixError
    from vmsnix_ops.runbooks.declarations import Parameter
    from vmsnix_ops.runbooks.evidence.runs import ArchivedRun
    from vmsnix_ops.runbooks.execution.resume import Resumed

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic since click 8.4 only

PREFIX = "parameter_"  # distinguishes a runbook's parameters from the options of every runbook
MISTAKES = "vmsnix.mistakes"  # key of the unknown options of a command line in ``click.Context.meta``
RESERVED = ("json", "archive", "sandbox", "param", "help", "yes", "modified")


class DeclaredType(ParamType):
    """The type of an option, as the parameters cell declares it."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        self.name = str(parameter.type)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        """Return the placeholder of the value in ``--help``."""
        kind = self.parameter.type
        if kind.choices:
            return f"[{'|'.join(str(choice) for choice in kind.choices if choice != '')}]"
        words = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "list": "A,B", "dict": "KEY=VALUE"}
        return words.get(kind.kind, "TEXT")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002 - click's signature
        """Return the text: all values are converted together, so that one error lists all mistakes."""
        return value

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the choices, or the images, that start with `incomplete`."""
        from vmsnix_ops.cli import completion

        if self.parameter.name == "image":
            return completion.images(incomplete)
        return completion.items((str(choice) for choice in self.parameter.choices), incomplete)


class RunbookCommand(click.Command):
    """A runbook as a command. Its help lists its own parameters before the options of every runbook."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text, safe for a terminal: it contains texts from the notebook."""
        return lines(super().get_help(ctx))

    def __init__(self, *args: Any, arguments: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.arguments = arguments  # the parameter that needs no --name

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        words = [f"[{self.arguments.upper()}]..."] if self.arguments else []
        return [*super().collect_usage_pieces(ctx), *words]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an argument that is not an option, and suggest the command that was probably meant.

        Unknown options are kept in ``ctx.meta``, so that one error lists them with all other mistakes.
        """
        from vmsnix_ops.errors import ParameterError

        given, unknown = list(args), ctx.meta.setdefault(MISTAKES, [])
        while True:
            try:
                words = super().parse_args(ctx, list(given))
            except click.NoSuchOption as error:
                if self.name == "publish-ami" and error.option_name == "--rollback":
                    raise click.UsageError(_no_rollback(given), ctx) from error
                place = next(
                    (i for i, word in enumerate(given) if word.split("=")[0] == error.option_name), None
                )
                if place is None:
                    raise
                fix = f"To list the options: {ctx.command_path} --help"
                unknown.append(ParameterError(error.format_message(), fix=fix))
                takes_value = "=" not in given[place] and not "".join(given[place + 1 :][:1]).startswith("-")
                del given[place : place + 1 + takes_value]
            else:
                break
        if not words or ctx.resilient_parsing:
            return words
        hint = ""
        if NEW_RUN_ID.fullmatch(words[0]):
            hint = f" To undo an unfinished publish: vmsnix undo {words[0]}."
        elif words[0] == "help":
            hint = f" To list the options: {ctx.command_path} --help."
        if self.arguments and not hint:
            name = f"{PREFIX}{self.arguments}"
            ctx.params[name] = (*(ctx.params.get(name) or ()), words)
            ctx.args = []
            return []
        raise click.UsageError(f"{words[0]!r} is not an option. Use --name value for a parameter.{hint}", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write two lists: the runbook's parameters, and the options of every runbook."""
        defaults = parameters.defaults_in_use()
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is None:
                continue
            name = option.name or ""
            if name.startswith(PREFIX):
                text = parameters.with_default(name.removeprefix(PREFIX), record[1], defaults)
                own.append((record[0], text))
            else:
                common.append(record)
        if own:
            with formatter.section("Parameters"):
                formatter.write_dl(own)
        with formatter.section("Options"):
            formatter.write_dl(common)


def _no_rollback(args: list[str]) -> str:
    """Return the error for ``publish-ami --rollback RUN``, an option of earlier versions."""
    index = next(number for number, word in enumerate(args) if word.split("=")[0] == "--rollback")
    run_id = args[index].partition("=")[2] or "".join(args[index + 1 : index + 2])
    if not run_id or run_id.startswith("-"):
        run_id = "RUN"
    return (
        f"publish-ami has no option --rollback. To undo an unfinished publish: vmsnix undo {run_id}. To move "
        "a channel back: vmsnix rollback."
    )


class Runbooks(click.Group):
    """The group ``vmsnix run``, with every runbook as a command."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text, safe for a terminal: it contains texts from notebooks."""
        return lines(super().get_help(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the short names of all runbooks."""
        return [book.short_name for book in catalog.runbooks()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002 - click's signature
        """Return the command of a runbook, or raise `UnknownRunbookError`."""
        return command_of(cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the runbooks whose name starts with `incomplete`."""
        from vmsnix_ops.cli import completion

        return completion.runbooks(incomplete) or super().shell_complete(ctx, incomplete)


def command_of(name: str) -> click.Command:
    """Return the command of a runbook; the runbook ``fleet`` has its own, which takes a plan file."""
    if catalog.full_name(name) == "fleet":
        from vmsnix_ops.cli.fleet import fleet

        return fleet
    return runbook_command(name)


@click.command(cls=Runbooks, subcommand_metavar="NAME [PARAMETERS]...")
def run() -> None:
    """Run a runbook with papermill and save the evidence: executed notebook, report, result and log.

    `vmsnix run NAME` is the same as `vmsnix NAME`. `vmsnix help NAME` lists the parameters of a runbook.
    """


def runbook_command(name: str, past: ArchivedRun | None = None) -> click.Command:
    """Return the command of one runbook; with `past`, its parameters replace the notebook's defaults."""
    runbook = catalog.find(name, start=past.cwd if past is not None else None)
    effects = {
        "read_only": "Effect: read-only.",
        "creates": "Effect: creates resources.",
        "changes": "Effect: changes resources.",
        "deletes": "Effect: deletes resources, unless dry_run is on (the default).",
    }
    return RunbookCommand(
        name=runbook.name,
        help=f"{runbook.purpose}\n\n{effects[runbook.side_effects]}",
        short_help=runbook.purpose,
        callback=_callback(runbook, past),
        arguments=runbook.arguments,
        params=[
            *(_option(runbook, parameter) for parameter in runbook.parameters),
            *(  # names that are read as another parameter
                click.Option([f"--{other}", f"{PREFIX}{other}"], multiple=True, hidden=True)
                for other in parameters.other_names(runbook)
            ),
            *_common_options(runbook),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "allow_extra_args": True},
    )


def _option(runbook: catalog.Runbook, parameter: Parameter) -> click.Option:
    flag = parameter.name.replace("_", "-")
    name = f"{PREFIX}{parameter.name}"
    text = parameter.help
    if flag in RESERVED and (flag != "yes" or runbook.side_effects == "deletes"):
        text = f"{text} (only as -p {parameter.name}=VALUE)".strip()
        flag = f"parameter-{flag}"
    default = parameter.default
    if default not in (None, "", [], {}):
        text += f"  [default: {str(default).lower() if isinstance(default, bool) else default}]"
    if parameter.type.kind == "bool" and not parameter.type.optional:
        return click.Option([f"--{flag}/--no-{flag}", name], default=None, help=text)
    return click.Option(
        [f"--{flag}", name],
        type=DeclaredType(parameter),
        default=None,
        # `region` too: without `multiple`, click would silently use the last of two values.
        multiple=parameter.type.kind in ("list", "dict") or parameter.name in parameters.PLURALS,
        help=text,
    )


def _common_options(runbook: catalog.Runbook) -> list[click.Option]:
    options = [
        click.Option(
            ["-p", "--param", "pairs"],
            multiple=True,
            metavar="NAME=VALUE",
            help="Set a parameter; the same as --name value.",
        ),
        click.Option(["--sandbox"], is_flag=True, help="Use a local sandbox instead of AWS."),
        click.Option(
            ["--archive"],
            metavar="FOLDER",
            help="Location of the evidence: a folder, or s3://bucket/prefix.  [default: the setting archive]",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print result.json."),
    ]
    if not runbook.own and runbook.side_effects != "read_only":
        options.append(
            click.Option(
                ["--modified"],
                is_flag=True,
                help="Run the notebook although its cells differ from those of the package.",
            )
        )
    if runbook.side_effects == "deletes":
        options.append(
            click.Option(["--yes"], is_flag=True, help="Confirm that the run may delete, with --no-dry-run.")
        )
    return options


def _callback(runbook: catalog.Runbook, past: ArchivedRun | None) -> Callable[..., int]:
    def run_it(
        pairs: tuple[str, ...],
        sandbox: bool,
        archive: str | None,
        as_json: bool,
        yes: bool = False,
        modified: bool = False,
        **options: object,
    ) -> int:
        given, mistakes = _given(runbook, options, pairs)
        mistakes = [*click.get_current_context().meta.get(MISTAKES, ()), *mistakes]
        if past is not None:
            from vmsnix_ops.runbooks.execution.execute import same_parameters

            if mistakes:
                raise parameters.all_in_one(runbook, mistakes)
            given = same_parameters(runbook, past.parameters, given)
        return execute(
            runbook,
            given,
            sandbox=sandbox,
            archive=archive,
            as_json=as_json,
            yes=yes,
            modified=modified,
            cwd=past.cwd if past is not None else None,
            mistakes=mistakes,
        )

    return run_it


def _given(
    runbook: catalog.Runbook, options: Mapping[str, object], pairs: tuple[str, ...]
) -> tuple[dict[str, object], list[VmsnixError]]:
    """Return the parameters of a command line with repeated lists and mappings merged, and the mistakes."""
    from vmsnix_ops.errors import ParameterError

    declared = {parameter.name: parameter for parameter in runbook.parameters}
    given: dict[str, object] = {}
    mistakes: list[VmsnixError] = []
    for option, value in options.items():
        name = option.removeprefix(PREFIX)
        if value is None or value == ():
            continue
        try:
            given[name] = _merged(declared.get(name), value) if isinstance(value, tuple) else value
        except ParameterError as error:
            mistakes.append(error)
    try:
        by_pair = parameters.split(pairs)
    except ParameterError as error:
        return given, [*mistakes, error]
    for name, value in by_pair.items():
        known = name if name in declared else name.replace("-", "_")
        if known in given:
            mistakes.append(
                ParameterError(
                    f"The parameter {known!r} is given twice.",
                    why="Its option and -p both set it.",
                    fix="Use one of them.",
                )
            )
        else:
            given[name] = value
    fingerprints = [given[name] for name in ("expect_plan", "expect-plan") if name in given]
    if not all(str(one).strip() for one in fingerprints):
        mistakes.append(no_fingerprint())
    for hint in parameters.hints(runbook, given):
        echo(hint, err=True)
    return given, mistakes


def _merged(parameter: Parameter | None, values: tuple[Any, ...]) -> object:
    """Return the values of a repeated option as one list, mapping or value."""
    if parameter is None or parameter.type.kind not in ("list", "dict"):
        return values[0] if len(set(values)) == 1 else list(values)
    parts: list[Any] = [parameters.convert(parameter, value) for value in values]
    if parameter.type.kind == "dict":
        return {key: item for part in parts for key, item in part.items()}
    return [item for part in parts for item in part]


def execute(
    runbook: catalog.Runbook,
    given: Mapping[str, object],
    *,
    sandbox: bool,
    archive: str | None,
    as_json: bool,
    yes: bool = False,
    modified: bool = False,
    cwd: Path | None = None,
    mistakes: Sequence[VmsnixError] = (),
    resumed: Resumed | None = None,
) -> int:
    """Run a runbook, show its outcome, and return the exit code.

    With `as_json`, only ``result.json`` is written to standard output; the output of the notebook, and an
    error, are written to standard error. Without `yes`, a terminal gets a prompt before a runbook deletes.
    `mistakes` of the command line are listed in one error with those of the values.
    """
    from vmsnix_ops.cli.next_steps import next_command
    from vmsnix_ops.cli.output import is_unattended, open_display, show_end
    from vmsnix_ops.cli.sandbox import run_sandbox, sandbox_defaults
    from vmsnix_ops.runbooks.evidence.writing import all_parameters
    from vmsnix_ops.runbooks.execution.execute import read_notebook
    from vmsnix_ops.runbooks.execution.execute import run as run_runbook

    # First, so that an error starts no sandbox, and no prompt is answered.
    environment = {**os.environ, **sandbox_defaults()} if sandbox else None
    checked = parameters.check_call(runbook, given, environment=environment, cwd=cwd, before=mistakes)
    allowed = modified or sandbox or bool(os.environ.get("VMSNIX_SANDBOX"))
    read_notebook(runbook, all_parameters(runbook, checked), modified=allowed)
    confirmed = yes or _confirmed(runbook, checked)
    with (
        run_sandbox() if sandbox else nullcontext() as served,
        open_display(as_json=as_json) as (screen, on_event),
    ):
        outcome = run_runbook(
            runbook,
            checked,
            archive=archive,
            environment=served.environment if served is not None else None,
            cwd=cwd,
            confirmed=confirmed,
            modified=modified,
            resumed=resumed,
            screen=screen,
            on_event=on_event,
            notify=is_unattended(),
        )
    following = next_command(runbook, outcome.values, sandbox=sandbox)
    return show_end(outcome, as_json=outcome.values if as_json else None, following=following)


def _confirmed(runbook: catalog.Runbook, given: Mapping[str, object]) -> bool:
    """Prompt on a terminal before a runbook deletes; without a terminal, the runner refuses to run it."""
    if runbook.side_effects != "deletes" or given.get("dry_run", True) is True:
        return False
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return click.confirm(f"{runbook.name} will delete what its dry run lists. Continue?", err=True)
