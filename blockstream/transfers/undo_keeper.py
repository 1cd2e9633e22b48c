"""What a transfer does with undo logs: it keeps its own, or forgets that of an earlier one."""

from collections.abc import Callable

from blockstream.transfers.opened_target import OpenedTarget
from blockstream_protocol import Open, Plan

Save = Callable[[Open, Plan, bool], None]


class UndoKeeper:
    """Stands between a target and the first write to it.

    An earlier undo log leads back only from what the target held until now. It is set aside before
    the first write, and put back if there is none.
    """

    def __init__(self, everything: OpenedTarget, save: Save | None = None) -> None:
        """Prepare; `save` keeps what is overwritten, so that it can be undone; None for nothing."""
        self._everything = everything
        self._save = save

    def begin(self, opening: Open, plan: Plan, *, resumed: bool) -> None:
        """Keep the pre-images of a plan, or nothing; a refusal here leaves everything as it was.

        Raises:
            RefusedError: If they cannot be kept.
        """
        everything = self._everything
        everything.set_undo_aside()
        if self._save is not None:
            try:
                self._save(opening, plan, resumed)
            except BaseException:
                everything.put_undo_back()
                raise
        elif not resumed:
            everything.drop_undo()
        # What lies in the spool, unfinished, was meant for what the target held until now, too.
        if self._save is not None or not everything.spool_complete:
            everything.drop_spool()

    def first_write(self) -> None:
        """Forget the earlier log; any thread, several times."""
        self._everything.forget_undo_aside()

    def nothing_written(self) -> None:
        """Put it back: the target holds what it held."""
        self._everything.drop_undo()
        self._everything.put_undo_back()
