"""Parameter names in several layouts, by one table that is read both ways."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["KeyTable"]


class KeyTable:
    """The modules of a family, one row each, in our layout first and then in each published one.

    A small letter in braces stands for an index, and its capital for how many of them there are: `body.{g}.body.{B}` is
    what comes behind the B blocks of a group. Of weights in an unknown layout, the one with the most rows that match is
    taken; names in no row stay as they are.

    Args:
        layouts: names of the published layouts.
        rows: module names, in ours and in each of these.
    """

    def __init__(self, layouts: Sequence[str], rows: Sequence[tuple[str, ...]]):
        self.rows = rows
        self.columns = {name: column for column, name in enumerate(("ours", *layouts))}

    def read(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights in any of the layouts, in ours."""
        found = [self._translate(state_dict, column, 0) for column in self.columns.values()]
        names = max(found, key=len)  # of equals the first, ours
        return {names.get(name, name): value for name, value in state_dict.items()}

    def write(self, state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Weights in our layout, in a published one."""
        names = self._translate(state_dict, 0, self.columns[layout])
        return {names.get(name, name): value for name, value in state_dict.items()}

    def _translate(self, names: Mapping[str, Tensor], source: int, target: int) -> dict[str, str]:
        """The new names of those that the source layout knows."""
        matches = []
        for row in self.rows:
            pattern = _pattern(row[source])
            matches += [(name, match, row[target]) for name in names if (match := pattern.fullmatch(name))]
        counts: dict[str, int] = {}
        for _, match, _ in matches:
            for letter, index in match.groupdict().items():
                if len(letter) == 1:
                    counts[letter.upper()] = max(counts.get(letter.upper(), 0), int(index) + 1)
        return {
            name: f"{template.format(**match.groupdict(), **counts)}.{match['parameter']}"
            for name, match, template in matches
        }


def _pattern(module: str) -> re.Pattern[str]:
    """Finds the parameters of a module whose name has letters for indices."""
    module = re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>\\d+)", re.escape(module))
    return re.compile(re.sub(r"\\\{[A-Z]\\\}", r"\\d+", module) + r"\.(?P<parameter>weight|bias)")
