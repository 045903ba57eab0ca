"""The endpoints, one file a subject; `common` holds what they share."""

import service.http.path_ids as path_ids  # noqa: F401  ({…:id} in the paths of the routes)
