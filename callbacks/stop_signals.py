"""Being told to stop, by a scheduler or from the keyboard."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM and ctrl-C instead of ending the process; a second signal takes effect at once.

    Attributes:
        received: number of the first signal, 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[int, Any] = {}
        self._relayed = False

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that ended by the signal."""
        return 128 + (self.received or signal.SIGTERM)

    def install(self, relayed: bool = False) -> None:
        """Begin to take notes; in the main thread only, Python allows handlers nowhere else.

        Args:
            relayed: whether the process that started this one passes its signals on by SIGTERM. Ctrl-C and many
                schedulers tell both: a SIGTERM is never the second signal then.
        """
        self._relayed = relayed
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def restore(self) -> None:
        """Leave signals to the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, frame: Any) -> None:
        self.received = self.received or number
        for noted in self._handlers:
            if noted == signal.SIGINT or not self._relayed:
                signal.signal(noted, signal.SIG_DFL)  # not the handler before: Lightning's takes notes too
