"""Results of benchmarks in a file, so that what was measured is not measured again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import machine


class Journal:
    """The results that a file holds, one line of JSON each; without a file, those of this process."""

    def __init__(self, path: str | None) -> None:
        """Read what is there.

        Args:
            path: the file, which need not exist.
        """
        self._path = None if path is None else Path(path)
        self._known: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the process was killed while it wrote
                    continue
                self._known[json.dumps(record["key"])] = record["result"]

    def get(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """Give a result, which is measured and noted down where it is not known.

        Args:
            key: what it is the result of.
            make: measures it.

        Returns:
            The result, as JSON holds it.
        """
        name = json.dumps(list(key))
        if name not in self._known:
            self._known[name] = make()
            if self._path is not None:
                record = json.dumps({"key": list(key), "result": self._known[name], "machine": machine()})
                with self._path.open("a+b") as file:
                    file.seek(0, 2)
                    if file.tell():  # a line that was cut off is not gone on with
                        file.seek(-1, 2)
                        record = record if file.read(1) == b"\n" else "\n" + record
                    file.write(f"{record}\n".encode())
        return self._known[name]
