"""The endpoints, one file a subject; `common` holds what they share."""

import service.http.path_ids
