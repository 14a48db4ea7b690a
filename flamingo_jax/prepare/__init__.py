"""Corpora as they are downloaded → shards that `flamingo_jax.data` reads."""
