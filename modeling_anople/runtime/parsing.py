"""The parser of all commands: options come from dataclasses, those that people want first stand on top of the help."""

import argparse
import copy
import dataclasses
from collections.abc import Iterable

from transformers import HfArgumentParser


class OptionsParser(HfArgumentParser):
    """
    Makes options of dataclasses, as its base does; a field with a `heading` in its metadata stands under it in the help.

    An option has two spellings, with _ and -, of which the help shows the first.
    """

    def __init__(self, kinds: type | list[type], **settings: object):
        self._headings: dict[str, argparse._ArgumentGroup] = {}
        super().__init__(kinds, formatter_class=_Help, allow_abbrev=False, **settings)

    def _parse_dataclass_field(self, parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        field = copy.copy(field)
        field.metadata = dict(field.metadata)
        heading = field.metadata.pop("heading", None)
        if heading is not None:
            if heading not in self._headings:
                self._headings[heading] = self.add_argument_group(heading)
            parser = self._headings[heading]
        super()._parse_dataclass_field(parser, field)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says each option once and only defaults that are any; the usage names what is needed."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._ArgumentGroup],
        prefix: str | None = None,
    ) -> None:
        needed = [each for each in actions if each.required or not each.option_strings]
        anything = argparse.Action([], dest="options", metavar="[options]")
        super().add_usage(usage, [*needed, anything], [], prefix)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        names: dict[str, str] = {}
        for each in action.option_strings:
            names.setdefault(each.replace("-", "_"), each)
        shown.option_strings = list(names.values())
        if action.const is True:  # yes where nothing follows
            shown.nargs = 0
        return super()._format_action_invocation(shown)


__all__ = ["OptionsParser"]
