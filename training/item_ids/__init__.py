"""Item identifiers of generative methods: titles, semantic IDs, cluster paths."""
