"""Artifacts that somebody made to do harm, from whole ones: one seeded change each, then new hashes and a new seal.

`KINDS` names the changes, in a fixed order; `make` applies one of them to a copy of a whole artifact.
"""

from testing.hostile import files, texts, manifests, tensors, catalogs, places, backbones, indexes  # noqa: F401, I001
from testing.hostile.changes import KINDS as KINDS
from testing.hostile.changes import MARKER as MARKER
from testing.hostile.changes import Unfit as Unfit
from testing.hostile.changes import make as make
