"""The bundle: what a compile leaves on disk, complete and checked, or not at all."""
