"""Work on all users at once, without HTTP: recommendations to files, histories into the store."""
