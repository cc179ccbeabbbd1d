"""Records, the data sets that become records, and GlyphScenes, the world of the bundled models."""
