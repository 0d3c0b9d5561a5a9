"""One folder a target, same anatomy each: `lower` (edge op → target op), `package` (files), `host` (runs the saved files)."""
