"""`python -m service ARTIFACT…` serves (`service.cli`).

`pull`, `key`, `export` and `load` are `service.admin_cli`, `recommend` and `doctor` are `service.local_cli`.
"""

from __future__ import annotations

import sys

from service.early import end_on_signals

# A folder of one of these names is served as ./pull, ./key, ….
if sys.argv[1:2] in (["pull"], ["key"], ["export"], ["load"]):
    from service.admin_cli import app
elif sys.argv[1:2] in (["recommend"], ["doctor"]):
    from service.local_cli import app
else:
    end_on_signals()  # before the imports, which take seconds
    from service.cli import app

app(prog_name="python -m service")
