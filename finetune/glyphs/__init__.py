"""GlyphScenes, the procedural world of the bundled models: its scenes, its language, its questions and its benchmark."""
