// The header is all that this target is for.
