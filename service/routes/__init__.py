"""The endpoints, one file a subject; `common` holds what they share."""

import service.paths  # noqa: F401  ({…:id} in the paths of the routes)
