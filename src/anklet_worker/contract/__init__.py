"""The plugin contract: the only package of ours that a plugin may import.

Start with `plugin` (what an entry point must be), then its two halves: `source` finds jobs and keeps house at their origin,
`driver` runs one claimed job inside a VM. `context` is what the core hands to a plugin; `job`, `guest`, `board` and `figures` are
the words they share; `errors` says who should try again; `rules` declares a plugin's settings, `findings` its examination by
`anklet-supervisor doctor`. `docs/plugins.md` tells how to write one.

Knows no job system, no VM tool and no supervisor.
"""

from anklet_worker import __version__

#: The program's version, for requests that say who asks.
VERSION = __version__
