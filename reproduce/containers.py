"""A site in, the start of the commands that its jobs run out: this Python, or the one of the site's container.

A container is entered by each process, not by the job: what submitit starts stays outside, where `scontrol` can put the
job back into the queue, and signals go through. Apptainer (once Singularity) is what most clusters let users run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from reproduce.errors import SiteError
from reproduce.sites import Site

SEPARATORS = ",:"  # of apptainer's --bind, which has no way to quote them


def python_command(site: Site, *, root: Path) -> tuple[str, ...]:
    """What to put before `-m franca...`. The container sees the project and what the site names, each at its own place.

    Raises `SiteError` for a folder whose name the container's program cannot be told.
    """
    container = site.container
    if container is None:
        return (sys.executable,)
    named = sorted({(root / Path(folder).expanduser()).absolute() for folder in _folders(site)})
    seen = list(dict.fromkeys([root.absolute(), root.resolve(), *named]))
    for folder in seen:
        if any(separator in str(folder) for separator in SEPARATORS):
            raise SiteError(
                f"{folder} cannot be mounted in a container: its name holds one of {SEPARATORS}",
                path=site.paths[0],
                mend="name it by a path without, such as a link's",
            )
    outer = [folder for folder in seen if not any(above in folder.parents for above in seen)]
    binds = [word for folder in outer for word in ("--bind", str(folder))]
    return (container.runtime, "exec", *container.options, *binds, container.image, container.python)


def _folders(site: Site) -> Iterator[str]:
    """What a run may read or write beside the project."""
    yield from filter(None, site.data_roots.values())
    yield from (str(Path(file).parent) for file in site.weights.values())
    yield from filter(None, (site.scratch,))
    yield from site.container.mounts if site.container else ()
