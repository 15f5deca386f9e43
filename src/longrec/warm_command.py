"""The command that folds the states of users before a bundle is served."""

from __future__ import annotations

from pathlib import Path


def warm(bundle: str | Path, state: str | Path | None = None, at: int | None = None) -> dict[str, int]:
    """Fold the events of all users into their states, so that no request has to read a whole history.

    Args:
        bundle: a bundle that was exported with states.
        state: folder or ``redis://`` URL of the state, as ``serve --state`` has it. Default: next to the bundle.
        at: timestamp from which requests can use the states, in milliseconds UTC or steps. Default now.

    Returns:
        The numbers of ``users`` and ``states``, how many were ``folded`` now, and the ``bytes_per_user``.

    Raises:
        BundleError: if the bundle has no states.
        StoreError: if a store cannot be opened, or a server uses it.
    """
    from longrec.serve.settings import build_settings
    from longrec.serve.warm import warm_states

    return warm_states(Path(bundle), build_settings(events=True, state=state), at)
